"""No file that byol reads can run code: pickles in every place where one could be, and YAML tags.

Each pickle creates a marker file if it is executed. The reader is the real one, and the user gets an error of
byol in one line, or byol does without the file.
"""

import hashlib
import io
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from byol.base import cache
from byol.base.errors import ByolError, CheckpointError, ConfigError, DataError
from byol.cli.main import main
from byol.config import load_config
from byol.data.decode.image import decode
from byol.data.labels.label_file import match_labels
from byol.data.pack.images import open_images
from byol.data.pack.packed import ARRAYS, CHECKSUMS, digest_file, open_pack
from byol.data.sources.opening import open_source
from byol.encoder.classifier import load_classifier
from byol.encoder.encoder import load
from byol.runfolder import checkpoint
from byol.training import best, initial_weights, rollback, skipped
from byol.training.runlog import read_metrics
from byol.weights.files import read_weights
from edits import edit_json
from runs import configure, make_run, write_images

ROOT = Path(__file__).parents[1]


class Calls:
    """Is pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._made


def evil(marker: Path) -> Calls:
    return Calls(os.system, f"touch {marker}")


def as_pickle(marker: Path) -> bytes:
    return pickle.dumps(evil(marker))


def as_old_pickle(marker: Path) -> bytes:
    return f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()


def as_torch(marker: Path, *, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    state = {"format": 1, "done": 1, "byol": {"a": torch.zeros(2)}, "optimizer": evil(marker)}
    torch.save(state, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def as_npy(marker: Path, shape: tuple[int, ...] = (4,)) -> bytes:
    buffer = io.BytesIO()
    values = np.empty(shape, dtype=object)
    values.flat[:] = [evil(marker)] * values.size
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def as_npz(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("images.npy", "data.npy"):
            archive.writestr(name, as_npy(marker))
    return buffer.getvalue()


FORMS: dict[str, Callable[[Path], bytes]] = {
    "pickle": as_pickle,
    "old pickle": as_old_pickle,
    "torch": as_torch,
    "old torch": lambda marker: as_torch(marker, is_zip=False),
    "npy": as_npy,
    "npz": as_npz,
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def check_refused(marker: Path, read: Callable[[], object], *errors: type[ByolError]) -> None:
    """Or read as something that holds nothing; in any case nothing is executed."""
    with pytest.raises(errors or ByolError) as refused:
        read()
    assert not marker.exists()
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder without checkpoints, and its images."""
    folder = tmp_path_factory.mktemp("run")
    write_images(folder / "images", num=4)
    make_run(folder / "run", folder / "images", f"data.packs={folder / 'packs'}")
    return folder / "run"


@pytest.mark.parametrize("form", FORMS)
def test_the_attack_works_on_a_reader_that_trusts_it(form: str, marker: Path, tmp_path: Path) -> None:
    content = FORMS[form](marker)
    path = tmp_path / "file"
    path.write_bytes(content)
    if "torch" in form:
        torch.load(path, weights_only=False)
    elif form == "npz":
        np.load(path, allow_pickle=True)["data"]
    elif form == "npy":
        np.load(path, allow_pickle=True)
    else:
        pickle.loads(content)
    assert marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints(form: str, marker: Path, tmp_path: Path) -> None:
    """The checksum beside it is right: whoever writes the one can write the other."""
    content = FORMS[form](marker)
    path = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(content).hexdigest())
    check_refused(marker, lambda: checkpoint.read(path), CheckpointError)
    check_refused(marker, lambda: checkpoint.read_latest(tmp_path / "run"), CheckpointError)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["encoder.json", "encoder.safetensors", "classifier.json", "classifier.safetensors"]
)
def test_encoders_and_classifiers(name: str, form: str, marker: Path, run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for file in ("encoder.json", "encoder.safetensors"):
        (folder / file).write_bytes((run_dir / file).read_bytes())
    for file in ("classifier.json", "classifier.safetensors"):
        (folder / file).write_bytes(b"{}")
    (folder / name).write_bytes(FORMS[form](marker))
    check_refused(marker, lambda: load_classifier(folder, device="cpu"), CheckpointError)
    if name.startswith("encoder"):
        check_refused(marker, lambda: load(folder, device="cpu"), CheckpointError)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz", ".safetensors"])
def test_weights_to_start_from(suffix: str, form: str, marker: Path, tmp_path: Path) -> None:
    """Tensors beside the code may be read; they do not fit."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(FORMS[form](marker))
    config = configure("images", f"network.fine_tune_from={path}")
    check_refused(marker, lambda: initial_weights.rehearse(config, channels=3), ByolError)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(FORMS[form](marker))
    if "torch" not in form:
        check_refused(marker, lambda: read_weights(tmp_path / "hub"), CheckpointError)
    config = configure("images", f"network.fine_tune_from={tmp_path / 'hub'}")
    check_refused(marker, lambda: initial_weights.rehearse(config, channels=3), ByolError)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png", ".jpg", ".tif", ".dcm", ".webp", ""])
def test_images(suffix: str, form: str, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    path.write_bytes(FORMS[form](marker))
    check_refused(marker, lambda: decode(str(path)), DataError)
    check_refused(
        marker, lambda: open_images(configure(path, f"data.packs={tmp_path}/p"), tmp_path / "r", console=None)
    )


@pytest.mark.parametrize("form", ["pickle", "npy", "npz"])
def test_the_cache_of_results(form: str, marker: Path, tmp_path: Path) -> None:
    """With and without a right checksum behind it: the result is computed again."""
    content = FORMS[form](marker)
    for end in (b"", hashlib.blake2b(content, digest_size=32).digest()):
        path = tmp_path / f"{len(end)}.npz"
        path.write_bytes(content + end)
        made, was_cached = cache.load_or_make(path, lambda: {"data": np.ones(2)})
        assert not was_cached and made["data"].tolist() == [1.0, 1.0]
        path = tmp_path / f"{len(end)}.npy"
        path.write_bytes(content + end)
        assert cache.load_or_make_array(path, lambda: np.ones(3)).tolist() == [1.0, 1.0, 1.0]
    assert not marker.exists()


@pytest.mark.parametrize("name", [*ARRAYS, CHECKSUMS, "images.npy", "pack.json"])
def test_packs(name: str, marker: Path, run_dir: Path, tmp_path: Path) -> None:
    """With right checksums in `pack.json`, as an attacker would write them."""
    config = configure(run_dir.parent / "images", f"data.packs={tmp_path / 'packs'}")
    folder = open_images(config, tmp_path / "run", console=None).folder
    shape = (12, 16, 16, 3) if name == "images.npy" else (12,)
    (folder / name).write_bytes(as_pickle(marker) if name == "pack.json" else as_npy(marker, shape))
    if name != "pack.json":
        entry = {"bytes": (folder / name).stat().st_size, "blake2b": digest_file(folder / name)}
        edit_json(folder / "pack.json", lambda content: content["files"].update({name: entry}))
    check_refused(marker, lambda: open_pack(folder), DataError)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": []},
        {"pixels": {"low": [0.0], "high": [255.0], "mean": [0.5], "std": [0.2]}},
        {"pixels": {"low": [0.0] * 3}},
        {"pixels": None},
        {"num_images": 11},
        {"num_bad": "many"},
        {"files": []},
        {"files": {"../../secret": {"bytes": 1}}},
        {"notes": {"a": 1}},
    ],
)
def test_what_a_pack_says_of_itself(change: dict[str, object], run_dir: Path, tmp_path: Path) -> None:
    config = configure(run_dir.parent / "images", f"data.packs={tmp_path / 'packs'}")
    folder = open_images(config, tmp_path / "run", console=None).folder
    edit_json(folder / "pack.json", **change)
    with pytest.raises(DataError, match=r"delete .* to pack again"):
        open_pack(folder)


@pytest.mark.parametrize("form", FORMS)
def test_label_files_and_lists(form: str, marker: Path, tmp_path: Path) -> None:
    names = ["dark/000.png", "light/000.png"]
    for name in ("labels.csv", "labels.txt", "labels.tsv"):
        path = tmp_path / name
        path.write_bytes(FORMS[form](marker))
        check_refused(marker, lambda path=path: match_labels(path, names), DataError)
        listed = configure(path, f"data.packs={tmp_path}/packs")
        check_refused(
            marker, lambda config=listed: open_images(config, tmp_path / "run", console=None), DataError
        )


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_official_sets(kind: str, marker: Path, tmp_path: Path) -> None:
    """Their files are pickles, which are read only if their MD5 is that of the official ones."""
    for folder, names in (
        ("cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]),
        ("cifar-100-python", ["train", "test", "meta"]),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(as_pickle(marker))
    config = configure(kind, f"data.root={tmp_path}")
    check_refused(marker, lambda: open_images(config, tmp_path / "run", console=None), DataError)


@pytest.mark.parametrize("form", FORMS)
def test_records_of_a_run(form: str, marker: Path, tmp_path: Path) -> None:
    content = FORMS[form](marker) + b"\n"
    readers: dict[str, Callable[[Path], object]] = {
        best.FILE_NAME: best.read,
        rollback.FILE_NAME: rollback.read,
        initial_weights.FILE_NAME: initial_weights.read,
        "metrics.jsonl": read_metrics,
        "config.yaml": lambda folder: load_config(folder / "config.yaml", [], preset=None),
    }
    for name, read in readers.items():
        (tmp_path / name).write_bytes(content)
        check_refused(marker, lambda read=read: read(tmp_path), CheckpointError, ConfigError)


@pytest.mark.parametrize("form", FORMS)
def test_tar_files(form: str, marker: Path, tmp_path: Path) -> None:
    """As the tar file itself, and as an image, an array and labels in one."""
    content, path = FORMS[form](marker), tmp_path / "a.tar"
    config = load_config(None, [f"data.source={path}"], preset="default")
    path.write_bytes(content)
    check_refused(marker, lambda: open_source(config.data), DataError)
    with tarfile.open(path, "w") as tar:
        for name in ("0.png", "1.npy", "2.npz", "0.cls", "1.json", "3"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = open_source(config.data)
    for index in range(len(source)):
        check_refused(marker, lambda index=index: decode(source.item(index)), DataError)
    assert len(source) >= 3 and not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_steps_that_were_not_applied(form: str, marker: Path, tmp_path: Path) -> None:
    """`byol replay` reads a record and weights; the name of the file has the right checksum."""
    content = FORMS[form](marker)
    folder = tmp_path / skipped.FOLDER
    folder.mkdir()
    (folder / "step-00000003.json").write_bytes(content)
    check_refused(marker, lambda: skipped.read(tmp_path, 3), CheckpointError)
    name = f"step-00000003-{hashlib.sha256(content).hexdigest()[:12]}.safetensors"
    (folder / name).write_bytes(content)
    record = skipped.Skipped(3, "nan", "nan", 0.1, 0, 1, 1, 1, 1, [0], ["a.png"], weights=name)
    check_refused(marker, lambda: skipped.read_weights(tmp_path, record), CheckpointError)


@pytest.mark.parametrize("name", ["eval.json", "measures.json", "start.json", "best.json", "environment.json",
                                  "metrics.jsonl", "map.npz", "config.yaml"])  # fmt: skip
def test_commands_print_one_line(
    name: str, marker: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real command, which may also do without the file."""
    folder = tmp_path / "run"
    folder.mkdir()
    for file in ("config.yaml", "encoder.json", "encoder.safetensors"):
        (folder / file).write_bytes((run_dir / file).read_bytes())
    (folder / name).write_bytes(as_pickle(marker) + b"\n")
    code = main(["compare", str(folder)])
    printed = capsys.readouterr()
    assert not marker.exists() and "Traceback" not in printed.err
    assert code == 0 or len(printed.err.splitlines()) == 1


def test_features_of_an_interrupted_embed(marker: Path, run_dir: Path, tmp_path: Path) -> None:
    """`OUTPUT.partial`, in which a killed `byol embed` keeps its rows."""
    output = tmp_path / "features.npz"
    partial = tmp_path / "features.npz.partial"
    partial.mkdir()
    for name in ("progress.json", "values.f32", "places.i64", "left_out.csv"):
        (partial / name).write_bytes(as_pickle(marker))
    code = main(["embed", str(run_dir), str(run_dir.parent / "images"), "-o", str(output)])
    assert not marker.exists()
    assert code == 0 and len(np.load(output)["features"]) == 12


# ---- YAML

TAGS = [
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:os.system ['touch {marker}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {marker}']",
    "!own {{a: 1}}",
    "!!binary aGk=",
    "!!set {{a}}",
    "!!timestamp 2001-01-01",
    "[1, !!python/object/apply:os.system ['touch {marker}']]",
    "{{? !!python/object/apply:os.system ['touch {marker}'] : 1}}",
]


@pytest.mark.parametrize("text", TAGS)
def test_yaml_tags_are_refused(text: str, marker: Path, tmp_path: Path) -> None:
    value = text.format(marker=marker)
    path = tmp_path / "config.yaml"
    for key in ("data: {source: VALUE}", "trainer: VALUE", "VALUE", "unknown: VALUE"):
        path.write_text(key.replace("VALUE", value))
        check_refused(marker, lambda: load_config(path, [], preset=None), ConfigError)
    path.write_text("%TAG !e! tag:yaml.org,2002:python/\n---\ndata: {source: !e!name:os.system }\n")
    with pytest.raises(ConfigError, match=r":3: the tag !!python/name:os\.system is not allowed"):
        load_config(path, [], preset=None)
    for key in ("data.source", "trainer", "network.name"):
        with pytest.raises(ConfigError, match=r"the tag .* is not allowed"):
            load_config(None, [f"{key}={value}"], preset="default")
    assert not marker.exists()


def test_yaml_that_grows(tmp_path: Path) -> None:
    """Billions of values by nine lines of aliases, and a list that contains itself."""
    path = tmp_path / "config.yaml"
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"config\.yaml:1: means more than 10,000 values"):
        load_config(path, [], preset=None)
    path.write_text("data:\n  channels: &a [1, *a]\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:2: a value contains itself"):
        load_config(path, [], preset=None)
    path.write_text("data_transforms: {view1: &v {flip: 0.5}, view2: *v}")
    assert load_config(path, [], preset="default").data_transforms.view2.flip == 0.5


# ---- The source


def test_every_reader_is_told_not_to_trust() -> None:
    """In the source: no reader of NumPy or PyTorch with pickles, and `pickle` only where it is harmless."""
    allowed = {
        "data/sources/parallel.py": "between byol's own processes",
        "weights/inert_pickle.py": "with a reader that finds no names",
    }
    call = re.compile(
        r"(np\.load|read_array|torch\.load|pickle\.loads?|pickle\.Unpickler|joblib\.load)\((.*)"
    )
    package = ROOT / "src" / "byol"
    for path in package.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = call.search(line)
            if found is None or "`" in line:
                continue
            where = f"{path.name}:{number}: {line.strip()}"
            if found[1].startswith(("pickle", "joblib")):
                assert path.relative_to(package).as_posix() in allowed, where
            else:
                safe = "weights_only=True" if found[1] == "torch.load" else "allow_pickle=False"
                assert safe in found[2], where
