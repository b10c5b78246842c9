"""Tar files as sources: what is in them, labels, damage, and names that lead elsewhere."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import byol
from byol.base import disk
from byol.base.errors import DataError
from byol.cli.main import main
from byol.config import load_config
from byol.data.decode.image import decode
from byol.data.pack.images import open_images
from byol.data.sources import tars
from byol.data.sources.opening import FileSource, describe_source, open_source
from byol.data.sources.tars import TarSource
from runs import TINY, write_images

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def png(value: int = 0, px: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((px, px, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, form: str = "pax") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def open_(source: Path | str, *overrides: str) -> TarSource:
    config = load_config(None, [f"data.source={source}", *overrides], preset="default")
    found = open_source(config.data)
    assert isinstance(found, TarSource)
    return found


def names(source: TarSource) -> list[str]:
    return [source.names(index) for index in range(len(source))]


def said(source: TarSource) -> str:
    return "\n".join(describe_source(source))


# ---- What is read


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_and_long_names(form: str, tmp_path: Path) -> None:
    long = "/".join(["folder" * 6] * (3 if form == "ustar" else 9)) + "/" + "n" * 80 + ".png"
    unusual = "./schön/b c.png" if form != "ustar" else "./plain/b c.png"
    path = write_tar(tmp_path / "a.tar", (long, png(1)), (unusual, png(2)), ("x/c.PNG", png(3)), form=form)
    source = open_(path)
    assert names(source) == [f"a.tar/{long}", f"a.tar/{unusual[2:]}", "a.tar/x/c.PNG"]
    assert [int(decode(source.item(index))[0, 0, 0]) for index in range(3)] == [1, 2, 3]
    assert source.file_bytes == np.mean([len(png(value)) for value in (1, 2, 3)])


def test_a_folder_a_list_and_shards_in_subfolders(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    for number in (1, 0):
        write_tar(folder / "sub" / f"train-{number:06d}.tar", (f"{number}.png", png(number)))
    write_tar(folder / ".hidden.tar", ("9.png", png(9)))
    write_tar(folder / "z.tar", ("0.png", png(7)), ("notes.txt", b"text"))
    wanted = ["sub/train-000000.tar/0.png", "sub/train-000001.tar/1.png", "z.tar/0.png"]
    source = open_(folder)
    assert names(source) == wanted and "1 .txt (z.tar/notes.txt)" in said(source)
    listed = tmp_path / "shards.txt"
    listed.write_text("tars/z.tar\ntars/sub/train-000000.tar\n")
    assert names(open_(listed)) == ["tars/z.tar/0.png", "tars/sub/train-000000.tar/0.png"]
    listed.write_text("tars/z.tar\nb.png\n")
    with pytest.raises(DataError, match=r"names tar files \(tars/z\.tar\) and others \(b\.png\)"):
        open_(listed)
    (folder / "a.png").write_bytes(png())
    source_of_files = open_source(load_config(None, [f"data.source={folder}"], preset="default").data)
    assert isinstance(source_of_files, FileSource) and len(source_of_files) == 1
    assert "1 .tar (z.tar" in said(source_of_files) or ".tar" in said(source_of_files)  # type: ignore[arg-type]
    assert "name one of them, or a folder or list with nothing else" in said(source_of_files)  # type: ignore[arg-type]


def test_labels(tmp_path: Path) -> None:
    one = write_tar(
        tmp_path / "cls.tar",
        ("s1.cls", b"10\n"), ("s1.left.png", png()), ("s1.right.png", png(1)),
        ("s2.png", png()), ("s2.cls", b"9"), ("s2.json", b'{"label": 3}'), ("s3.png", png()),
    )  # fmt: skip
    source = open_(one)
    assert source.class_names == ("9", "10") and source.labels.tolist() == [1, 1, 0, -1]
    deep = b"[" * 100_000
    two = write_tar(
        tmp_path / "json.tar",
        ("a/1.json", json.dumps({"class": "cat"}).encode()), ("a/1.jpg", png()), ("b/1.jpg", png()),
        ("b/1.json", deep), ("c/1.png", png()), ("c/1.json", b'{"label": [1], "cls": true}'),
    )  # fmt: skip
    source = open_(two)
    assert source.class_names == ("cat",) and source.labels.tolist() == [0, -1, -1]
    assert ".json" not in said(source)
    three = write_tar(tmp_path / "folders.tar", ("x/cat/1.png", png()), ("x/dog/1.png", png()))
    source = open_(three)
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 1]
    assert open_(write_tar(tmp_path / "flat.tar", ("1.png", png()), ("a/2.png", png()))).class_names == ()


def test_arrays_and_files_without_a_suffix(tmp_path: Path) -> None:
    members = []
    for number in range(3):
        file = io.BytesIO()
        np.save(file, np.full((2, 9, 7 + number), number, np.uint16))
        members.append((f"{number}.npy", file.getvalue()))
    source = open_(write_tar(tmp_path / "a.tar", *members, ("plain", png(4)), ("note", b"hello")))
    assert [decode(source.item(index)).shape for index in range(3)] == [(9, 7 + n, 2) for n in range(3)]
    assert source.array_layout == "chw" and names(source)[3] == "a.tar/plain"
    assert "because their content is an image: 1 (a.tar/plain)" in said(source)


# ---- What is refused or left out


@pytest.mark.parametrize(
    ("suffix", "command"),
    [
        (".tar.gz", "gunzip"),
        (".tgz", "gunzip"),
        (".tar.xz", "unxz"),
        (".tar.bz2", "bunzip2"),
        (".tar.zst", "unzstd"),
    ],
)
def test_compressed_tars_are_refused_with_the_command(suffix: str, command: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / f"a{suffix}"
    path.parent.mkdir()
    path.write_bytes(b"anything")
    (tmp_path / "list.txt").write_text(f"folder/a{suffix}\n")
    for source in (path, path.parent, tmp_path / "list.txt"):
        with pytest.raises(
            DataError, match=rf"compressed with .*unpack it once: {command} --keep .*a\{suffix}"
        ):
            open_(source)


def test_a_compressed_tar_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(write_tar(tmp_path / "b", ("1.png", png())).read_bytes()))
    with pytest.raises(DataError, match="compressed with gzip"):
        open_(path)


def test_names_that_lead_elsewhere_links_and_devices_are_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(99))
    path = write_tar(
        tmp_path / "t" / "a.tar",
        ("/etc/passwd.png", png()), ("../secret.png", png()), ("a/../../secret.png", png()),
        ("ok.png", png(5)),
        special("link.png", tarfile.SYMTYPE, str(secret)), special("hard.png", tarfile.LNKTYPE, "ok.png"),
        special("device.png", tarfile.CHRTYPE), special("pipe.png", tarfile.FIFOTYPE),
        special("folder.png", tarfile.DIRTYPE), (".hidden.png", png()), ("__MACOSX/x.png", png()),
    )  # fmt: skip
    source = open_(path)
    assert names(source) == ["a.tar/ok.png"]
    text = said(source)
    assert "skipped files whose names lead out of their tar file (absolute, or with ..): 3" in text
    assert "skipped links, devices and sparse files in tar files: 4 (a.tar/device.png, " in text
    assert "hidden files and folders, and those of the system: 2" in text


def test_the_last_of_files_with_one_name_is_read(tmp_path: Path) -> None:
    source = open_(write_tar(tmp_path / "a.tar", ("1.png", png(1)), ("2.png", png(2)), ("./1.png", png(3))))
    assert names(source) == ["a.tar/1.png", "a.tar/2.png"] and int(decode(source.item(0))[0, 0, 0]) == 3
    assert "read only the last of files that are in a tar file more than once: 1" in said(source)


def test_tars_put_one_after_the_other(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / name, (f"{name}.png", png())).read_bytes() for name in ("x", "y")]
    (tmp_path / "both.tar").write_bytes(b"".join(parts))
    assert names(open_(tmp_path / "both.tar")) == ["both.tar/x.png", "both.tar/y.png"]


@pytest.mark.parametrize("form", FORMATS)
def test_cut_short_at_every_block(form: str, tmp_path: Path) -> None:
    """One clear error; with data.skip_unreadable the whole images before, each with its own pixels."""
    members = [(f"{'n' * 120 if form != 'ustar' else ''}{number}.png", png(number)) for number in range(4)]
    whole = write_tar(tmp_path / "whole.tar", *members, form=form).read_bytes()
    path = tmp_path / "a.tar"
    end = whole.rstrip(b"\0")
    for length in range(0, len(end), 256):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar"):
            open_(path)
        try:
            source = open_(path, "data.skip_unreadable=true")
        except DataError as error:
            assert "are empty" in str(error)
            continue
        text = said(source)
        assert any(word in text for word in ("cut short", "no end mark"))
        assert [int(decode(source.item(n))[0, 0, 0]) for n in range(len(source))] == list(range(len(source)))
    assert length > 4 * 512


def test_damaged_headers(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("1.png", png(1)), ("2.png", png(2)), form="ustar")
    whole = path.read_bytes()
    second = 512 + -(-len(png(1)) // 512) * 512
    for at in (0, 124, 150, 156, 300):
        content = bytearray(whole)
        content[second + at] ^= 0x5A
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"damaged header at byte {second:,}; copy it again, or read only what"
        ):
            open_(path)
        source = open_(path, "data.skip_unreadable=true")
        assert names(source) == ["a.tar/1.png"] and "byol reads what comes before that (images: 1)" in said(
            source
        )
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="does not begin like a tar file"):
        open_(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="has no end mark"):
        open_(path)


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(("kind", "size"), [(b"L", 2**33), (b"x", 2**33), (b"L", 2**20), (b"x", 2**21),
                                            (b"0", 2**62), (b"0", 2**40)])  # fmt: skip
def test_sizes_that_would_fill_the_memory(kind: bytes, size: int, tmp_path: Path) -> None:
    """The file is as long as its header says, but of holes."""
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("a.png", size, kind))
        file.truncate(min(size, 2**33) + 4096)
    with pytest.raises(DataError, match=r"extended header of|damaged size|cut short"):
        open_(path)


def test_an_image_that_is_too_large_for_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("a.png", 2**31, b"0"))
        file.truncate(512 + 2**31 + 1024)
    source = open_(path)
    with pytest.raises(DataError, match=r"has 2\.1 GB, which byol reads only outside of a tar file"):
        decode(source.item(0))


def test_damaged_images_are_named_with_their_tar(tmp_path: Path) -> None:
    """A PNG that would need 16 GB, one that is cut short and a text, among good ones."""
    bomb = bytearray(png())
    bomb[16:24] = (65_000).to_bytes(4, "big") * 2
    good = [(f"{number}.png", png(number)) for number in range(9)]
    write_tar(
        tmp_path / "t" / "a.tar",
        *good,
        ("bomb.png", bytes(bomb)),
        ("cut.png", png()[:40]),
        ("t.jpg", b"x" * 99),
    )
    config = load_config(None, [f"data.source={tmp_path / 't'}", *TINY, "data.max_bad=0.5"], preset="default")
    packed = open_images(config, tmp_path / "run", console=None)
    assert len(packed) == 9 and packed.num_bad == 3
    bad = (packed.folder / "bad_files.csv").read_text()
    for name in ("a.tar/bomb.png", "a.tar/cut.png", "a.tar/t.jpg"):
        assert name in bad


def test_an_error_of_the_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PAUSES_S", (0.0, 0.0))
    path = write_tar(tmp_path / "a.tar", ("1.png", png(1)), ("2.png", png(2)))
    calls, read = [0], tars.Steady.read_once

    def fail(steady: object, start: int, size: int) -> bytes:
        calls[0] += 1
        if calls[0] in fails:
            raise OSError(5, "Input/output error")
        return read(steady, start, size)  # type: ignore[arg-type]

    monkeypatch.setattr(tars.Steady, "read_once", fail)
    fails = {3, 4}
    assert len(open_(path)) == 2
    calls[0], fails = 0, set(range(4, 99))
    with pytest.raises(DataError, match=r"a\.tar: the system cannot read it .*check the disk"):
        open_(path)


# ---- The commands


@pytest.mark.slow
def test_commands_give_what_files_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """check, train, eval and embed: the same pixels, labels and features as the unpacked files."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), num=8)
    files = sorted(path.relative_to("images") for path in Path("images").rglob("*.png"))
    half = len(files) // 2
    for number, part in enumerate((files[:half], files[half:])):
        write_tar(
            Path("tars") / f"set-{number:06d}.tar",
            *((str(path), (Path("images") / path).read_bytes()) for path in part),
        )
    steps = [*TINY, "trainer.max_epochs=2", "evaluation.num_bootstrap=50"]
    for source in ("images", "tars"):
        assert main(["check", source, "-o", f"check-{source}", *TINY]) == 0
        assert main(["train", source, "-o", f"runs/{source}", *steps]) == 0
        assert main(["eval", f"runs/{source}"]) == 0
        assert main(["embed", f"runs/{source}", source, "-o", f"{source}.csv"]) == 0
    results = [json.loads(Path(f"runs/{source}/eval.json").read_text()) for source in ("images", "tars")]
    for one, two in zip(*(result["rows"] for result in results), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    tables = [Path(f"{source}.csv").read_text().splitlines() for source in ("images", "tars")]
    for one, two in zip(*tables, strict=True):
        assert one.split(",")[1:] == two.split(",")[1:]
    assert tables[1][1].startswith("set-000000.tar/dark/000.png,")
    table = Path("labels.csv")
    table.write_text("file,label\n" + "".join(f"{path},{path.parts[0]}\n" for path in files))
    assert main(["eval", "runs/tars", "--labels", "labels.csv"]) == 0
    features = byol.load("runs/tars").embed("tars/set-000000.tar")
    assert features.shape[0] == half
    os.rename("tars", "gone")
    assert main(["eval", "runs/tars"]) == 0
