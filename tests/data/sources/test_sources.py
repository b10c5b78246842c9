"""Sources: what each layout yields, exactly, and one line for each that cannot be opened."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as official
from PIL import Image

from byol.base.errors import DataError
from byol.config import DataConfig
from byol.data.decode.arrays import find_shape
from byol.data.decode.image import decode
from byol.data.decode.index import Source
from byol.data.labels.label_file import LabelFile
from byol.data.sources import opening
from byol.data.sources.motifs import make_motifs
from byol.data.sources.opening import open_source, splits_of
from stl10 import write_stl10

RNG = np.random.default_rng(0)


def config(source: str | Path, *, root: Path | str = "datasets", split: str | None = None) -> DataConfig:
    return DataConfig(
        source=str(source),
        root=str(root),
        split=split,
        download=False,
        channels=None,
        alpha="auto",
        clip=0.001,
        stored_px=None,
        geometry="square",
        layout="auto",
        packs=None,
        cache_gb=50.0,
        memory="auto",
        max_bad=0.01,
        skip_unreadable=False,
    )


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (3, 2), value).save(path)


def names_of(source: Source) -> list[str]:
    return [source.names(index) for index in range(len(source))]


# ---- Folders


def test_a_folder_of_any_nesting_in_sorted_order(tmp_path: Path) -> None:
    for number, name in enumerate(["b.PNG", "a.png", "x/y/z/deep.jpg", "x/2.png", "x/10.png"]):
        write_image(tmp_path / name, number)
    for ignored in (".hidden.png", ".git/b.png", "notes.txt", "x/Thumbs.db"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_bytes(b"")
    source = open_source(config(tmp_path))
    assert names_of(source) == ["a.png", "b.PNG", "x/10.png", "x/2.png", "x/y/z/deep.jpg"]
    assert source.name == f"folder {tmp_path}/"
    assert source.labels.tolist() == [-1] * 5 and source.class_names == ()
    np.testing.assert_array_equal(decode(source.item(0)), np.full((2, 3, 1), 1, dtype=np.uint8))


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for name in ("part1/dog/1.png", "part1/cat/1.png", "part2/cat/1.png", "part2/ant/7.png"):
        write_image(tmp_path / name)
    source = open_source(config(tmp_path))
    assert source.class_names == ("ant", "cat", "dog")
    assert dict(zip(names_of(source), source.labels.tolist(), strict=True)) == {
        "part1/cat/1.png": 1,
        "part1/dog/1.png": 2,
        "part2/ant/7.png": 0,
        "part2/cat/1.png": 1,
    }


@pytest.mark.parametrize("extra", ["only/2.png", "top.png"])
def test_one_subfolder_or_images_beside_them_are_no_classes(tmp_path: Path, extra: str) -> None:
    names = ["only/1.png", extra] if extra.startswith("only") else ["a/1.png", "b/1.png", extra]
    for name in names:
        write_image(tmp_path / name)
    source = open_source(config(tmp_path))
    assert set(source.labels.tolist()) == {-1} and source.class_names == ()


def test_awkward_names_are_read_back(tmp_path: Path) -> None:
    names = [b"a b.png", b'quo"te.png', b"it's.png", b"new\nline.png", "日本.png".encode(), b"caf\xe9.png"]
    Image.new("L", (3, 2), 9).save(tmp_path / "plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(content)
    source = open_source(config(tmp_path))
    assert sorted(map(os.fsencode, names_of(source))) == sorted([*names, b"plain.png"])
    assert all((decode(source.item(index)) == 9).all() for index in range(len(source)))


def test_links_are_followed_and_loops_of_links_end(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a" / "1.png")
    write_image(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "self").symlink_to("self")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(config(tmp_path / "set"))
    assert names_of(source) == ["a/1.png", "broken.png", "linked/2.png"]
    with pytest.raises(DataError, match="no such file"):
        decode(source.item(1))


def test_the_fingerprint_changes_with_files_and_not_with_the_place(tmp_path: Path) -> None:
    for name in ("one/1.png", "one/2.png"):
        write_image(tmp_path / name)
    before = open_source(config(tmp_path / "one")).fingerprint()
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_source(config(tmp_path / "two")).fingerprint() == before
    os.utime(tmp_path / "two" / "2.png", ns=(1, 1))
    changed = open_source(config(tmp_path / "two")).fingerprint()
    (tmp_path / "two" / "2.png").rename(tmp_path / "two" / "3.png")
    assert len({before, changed, open_source(config(tmp_path / "two")).fingerprint()}) == 3


@pytest.mark.slow
def test_many_files_are_indexed_in_flat_memory(tmp_path: Path) -> None:
    """100,000; the index grows by the length of a name and 32 bytes a file, whatever their number.

    While they are looked for it is at most three times as much: no string or other object is kept of each.
    A process of its own, since types are not checked there.
    """
    count = 100_000
    for number in range(count):
        os.close(os.open(tmp_path / f"{number:05d}.png", os.O_CREAT))
    program = (
        "import sys, tracemalloc; from pathlib import Path\n"
        "from byol.data.sources.opening import open_folder\n"
        "tracemalloc.start(); source = open_folder(Path(sys.argv[1]))\n"
        "arrays = (source.files.blob, source.files.offsets, source.stamps, source.labels)\n"
        "print(len(source), source.names(len(source) - 1), tracemalloc.get_traced_memory()[1], "
        "sum(array.nbytes for array in arrays))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    found, last, peak, held = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    shutil.rmtree(tmp_path)  # pytest would keep them
    assert int(found) == count and last == "99999.png"
    assert int(peak) < 3 * count * (9 + 8 + 16 + 8)
    assert int(held) <= count * (9 + 8 + 16 + 8) + 8


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder is empty; images end in \.apng"):
        open_source(config(tmp_path))
    for name in ("a.xyz", "b.xyz", "c.doc", "README"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"no image, only 2 \.xyz, 1 without suffix, 1 \.doc") as caught:
        open_source(config(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(DataError, match=r"locked: cannot be read \(Permission denied\)"):
        open_source(config(tmp_path))


# ---- Single files, lists and labels


def test_paths_that_are_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cells: no such file or folder; .*stl10, cifar10"):
        open_source(config(tmp_path / "cells"))
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(DataError, match=r"movie\.mp4: neither a folder, a list"):
        open_source(config(tmp_path / "movie.mp4"))
    with pytest.raises(DataError, match="has no split test; give the folder"):
        open_source(config(tmp_path), split="test")


def test_one_image_is_a_source_of_one(tmp_path: Path) -> None:
    write_image(tmp_path / "one.png", 5)
    np.save(tmp_path / "one.npy", np.full((9, 8, 3), 5, dtype=np.uint16))
    source = open_source(config(tmp_path / "one.png"))
    assert names_of(source) == ["one.png"] and decode(source.item(0)).shape == (2, 3, 1)
    assert decode(open_source(config(tmp_path / "one.npy")).item(0)).shape == (9, 8, 3)


def test_text_lists_keep_their_order_and_are_relative_to_themselves(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a.png", 1)
    write_image(tmp_path / "b c.png", 2)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'b c.png'}\r\n\nset/a.png\nabsent.png\n")
    source = open_source(config(tmp_path / "list.txt"))
    assert names_of(source) == [str(tmp_path / "b c.png"), "set/a.png", "absent.png"]
    assert [int(decode(source.item(index))[0, 0, 0]) for index in (0, 1)] == [2, 1]
    with pytest.raises(DataError, match="no such file"):
        decode(source.item(2))


def test_csv_lists_carry_labels_and_any_name(tmp_path: Path) -> None:
    write_image(tmp_path / 'new\nline, ".png', 7)
    (tmp_path / "list.csv").write_text('plate,label,file\n1,10,"new\nline, "".png"\n1,9,b.png\n1,,c.png\n\n')
    source = open_source(config(tmp_path / "list.csv"))
    assert names_of(source) == ['new\nline, ".png', "b.png", "c.png"]
    assert source.class_names == ("9", "10") and source.labels.tolist() == [1, 0, -1]
    assert (decode(source.item(0)) == 7).all()


def test_files_that_a_list_spells_otherwise_are_found_and_told(tmp_path: Path) -> None:
    write_image(tmp_path / "Set" / "a.PNG", 1)
    write_image(tmp_path / "Set" / "007.png", 2)
    (tmp_path / "list.txt").write_bytes('D:\\old\\set\\a.png\r\n"Set/7.png"\r\n'.encode("utf-16"))
    source = open_source(config(tmp_path / "list.txt"))
    assert names_of(source) == ["Set/a.PNG", "Set/007.png"]
    assert any("names were matched" in note and "letter case" in note for note in source.notes)
    write_image(tmp_path / "other" / "07.png", 3)
    (tmp_path / "list.txt").write_text("7.PNG\n")
    with pytest.raises(DataError, match=r"7\.PNG matches several images, Set/007\.png and other/07\.png"):
        open_source(config(tmp_path / "list.txt"))


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv"])
@pytest.mark.parametrize(("encoding", "is_found"), [("cp1252", True), ("utf-16-le", True), ("cp850", False)])
def test_lists_in_other_encodings(tmp_path: Path, name: str, encoding: str, is_found: bool) -> None:
    images = [f"Käfer_{number}.png" for number in range(3)]
    for number, image in enumerate(images):
        write_image(tmp_path / image, number)
    head = "" if name == "list.txt" else "file\n"
    (tmp_path / name).write_bytes((head + "\n".join(images)).encode(encoding))
    source = open_source(config(tmp_path / name))
    notes = " | ".join(source.notes)
    assert ("not UTF-8" in notes) == (encoding != "utf-16-le")
    if is_found:
        assert names_of(source) == images and "do not exist" not in notes
    else:
        assert "3 of its 3 files do not exist" in notes
        assert "which is Käfer_0.png in a wrong encoding (cp850)" in notes


def test_a_file_of_a_list_that_is_not_there_is_told_with_the_kind_of_difference(tmp_path: Path) -> None:
    write_image(tmp_path / "IMG_0001.png")
    (tmp_path / "list.txt").write_text("IMG_1.png\nIMG_0001.png\n")
    source = open_source(config(tmp_path / "list.txt"))
    assert any("1 of its 2 files do not exist" in note and "zeros" in note for note in source.notes)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"list\.csv: is empty; write file,label"),
        ("where;label\na.png;1\n", "line 1 names the columns where, label, but no column `file`"),
        ("file,label\na.png\n", "line 2 has 1 fields"),
        ("file,label\n", "the list names no file"),
    ],
)
def test_csv_lists_that_cannot_be_read(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=reason):
        open_source(config(tmp_path / "list.csv"))


def test_labels_from_a_csv_take_the_place_of_folders(tmp_path: Path) -> None:
    for name in ("p1/a.png", "p2/a.png", "p2/b.png", "p2/c.png"):
        write_image(tmp_path / "set" / name)
    table = tmp_path / "labels.csv"
    table.write_text("file,label\nset/p1/a.png,sick\np2/a.png,well\nb.png,sick\nother/d.png,dead\n")
    source = open_source(config(tmp_path / "set"), labels=LabelFile(table))
    assert source.class_names == ("sick", "well") and source.labels.tolist() == [0, 1, 0, -1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("file,label\nz.png,1\n", r"none of its 1 files is among the images; it names z\.png"),
        ("file,label\np3/a.png,1\n", "none of its 1 files is among the images"),
        (
            "file,label\na.png,1\n",
            r"a\.png matches several images, p1/a\.png and p2/a\.png; write more of its path",
        ),
        ("file,label\np1/a.png,1\np1/a.png,2\n", r"p1/a\.png has two values of label, 1 and 2"),
        ("file\np1/a.png\n", "has no labels"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, content: str, reason: str) -> None:
    for name in ("p1/a.png", "p2/a.png"):
        write_image(tmp_path / "set" / name)
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=reason):
        open_source(config(tmp_path / "set"), labels=LabelFile(tmp_path / "labels.csv"))
    with pytest.raises(DataError, match="cannot be opened"):
        LabelFile(tmp_path / "absent.csv")


# ---- Arrays


@pytest.mark.parametrize("shape", [(6, 5, 8), (6, 5, 8, 2)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float64, np.int16])
def test_array_files_are_mapped_with_their_labels(
    tmp_path: Path, shape: tuple[int, ...], dtype: type
) -> None:
    images = RNG.integers(0, 30_000, shape, dtype=np.uint16).astype(dtype)
    np.save(tmp_path / "cells.npy", images)
    np.save(tmp_path / "cells_labels.npy", np.array([0, 2, 1, 0, -1, 2]))
    source = open_source(config(tmp_path / "cells.npy"))
    assert len(source) == 6 and source.labels.tolist() == [0, 2, 1, 0, -1, 2]
    assert source.class_names == ("0", "1", "2") and source.names(3) == "000003"
    np.testing.assert_array_equal(source.item(3), images.reshape(6, 5, 8, -1)[3])
    assert source.item(3).dtype == (np.uint16 if dtype is np.uint16 else np.float32)
    before = source.fingerprint()
    os.utime(tmp_path / "cells.npy", ns=(1, 1))
    assert open_source(config(tmp_path / "cells.npy")).fingerprint() != before


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((6, 5, 8, 3), "c8"), r"holds complex64 of shape \(6, 5, 8, 3\)"),
        (np.zeros((0, 5, 8), "u1"), r"shape \(0, 5, 8\)"),
        (np.zeros((6, 9, 9, 9), "u1"), r"x\.npy: holds 6 images, each has the shape .*data\.layout=hwc"),
        (np.array([None]), "cannot be read as a NumPy array"),
    ],
)
def test_arrays_that_are_not_images(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=reason):
        open_source(config(tmp_path / "x.npy"))


def test_array_labels_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 5, 8), "u1"))
    np.save(tmp_path / "x_labels.npy", np.zeros(5, "i8"))
    with pytest.raises(
        DataError, match=r"x_labels\.npy: must hold one integer from -1 per image, 6 in total"
    ):
        open_source(config(tmp_path / "x.npy"))
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"x\.npy: cannot be read as a NumPy array"):
        open_source(config(tmp_path / "x.npy"))


# ---- Official files and the generated set


def test_stl10(tmp_path: Path) -> None:
    images = write_stl10(tmp_path / "stl10_binary")
    source = open_source(config("stl10", root=tmp_path))
    assert source.name == "STL-10, train+unlabeled" and len(source) == 6
    assert source.labels.tolist() == [0, 9, 2, -1, -1, -1] and source.class_names[9] == "truck"
    np.testing.assert_array_equal(source.item(1), images["train"][1])
    np.testing.assert_array_equal(source.item(5), images["unlabeled"][2])
    assert source.names(5) == "unlabeled/000002"
    test = open_source(config("stl10", root=tmp_path, split="unlabeled"), split="test")
    np.testing.assert_array_equal(test.item(2), images["test"][2])
    assert test.fingerprint() != source.fingerprint()
    assert len(open_source(config("stl10", root=tmp_path, split="unlabeled"))) == 3


def test_stl10_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path / "stl10_binary")
    monkeypatch.setattr(official.STL10, "_check_integrity", lambda self: True)
    theirs = official.STL10(tmp_path, split="train+unlabeled")
    ours = open_source(config("stl10", root=tmp_path))
    np.testing.assert_array_equal(
        np.stack([ours.item(i) for i in range(6)]), theirs.data.transpose(0, 2, 3, 1)
    )
    assert ours.labels.tolist() == theirs.labels.astype(int).tolist()[:3] + [-1] * 3


def test_stl10_that_is_missing_or_cut_short(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train_X\.bin: no such file; set data\.root .* or data\.download=true"
    ):
        open_source(config("stl10", root=tmp_path))
    write_stl10(tmp_path / "stl10_binary")
    with open(tmp_path / "stl10_binary" / "unlabeled_X.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"unlabeled_X\.bin: its 1000 bytes are not complete images"):
        open_source(config("stl10", root=tmp_path))
    (tmp_path / "stl10_binary" / "test_y.bin").write_bytes(b"\1\2")
    with pytest.raises(DataError, match=r"test_y\.bin: should hold 3 labels from 1 to 10"):
        open_source(config("stl10", root=tmp_path), split="test")
    with pytest.raises(DataError, match=r"stl10: has no split val; it has train\+unlabeled, train"):
        open_source(config("stl10", root=tmp_path), split="val")


def write_cifar(
    folder: Path, *, label_key: str, names_key: str, files: tuple[str, ...], meta: str
) -> np.ndarray:
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, (len(files), 2, 32, 32, 3), dtype=np.uint8)
    for name, pixels in zip(files, images, strict=True):
        rows = pixels.transpose(0, 3, 1, 2).reshape(2, -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, label_key: [1, 0]}))
    (folder / meta).write_bytes(pickle.dumps({names_key: ["frog", "ship"]}))
    return images


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "cifar10":
        files, dataset = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"), official.CIFAR10
        keys = {"label_key": "labels", "names_key": "label_names", "meta": "batches.meta"}
    else:
        files, dataset = ("train", "test"), official.CIFAR100
        keys = {"label_key": "fine_labels", "names_key": "fine_label_names", "meta": "meta"}
    images = write_cifar(tmp_path / dataset.base_folder, files=files, **keys)
    with pytest.raises(DataError, match=r"files are missing or are not the official ones; set data\.root"):
        open_source(
            config(kind, root=tmp_path)
        )  # small files of ours are not official: pickles are not trusted
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, name, [[file, None] for file, _ in getattr(dataset, name)])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": None})
    train, test = (
        open_source(config(kind, root=tmp_path)),
        open_source(config(kind, root=tmp_path), split="test"),
    )
    np.testing.assert_array_equal(
        np.stack([train.item(i) for i in range(len(train))]), np.concatenate(images[:-1])
    )
    np.testing.assert_array_equal(test.item(1), images[-1][1])
    assert test.labels.tolist() == [1, 0] and test.class_names == ("frog", "ship")
    assert train.names(0) == "train/000000" and train.fingerprint() != test.fingerprint()


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **options: object) -> None:
        raise OSError("<urlopen error\nno network>")

    monkeypatch.setattr(official.stl10, "download_and_extract_archive", fail)
    wanted = DataConfig(**(vars(config("stl10", root=tmp_path)) | {"download": True}))
    with pytest.raises(DataError, match=r"STL-10 could not be downloaded to .* no network>") as caught:
        open_source(wanted)
    assert "\n" not in str(caught.value)


def test_the_generated_set(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {split: make_motifs(6, seed=seed) for seed, split in enumerate(["train", "test"])}
    monkeypatch.setattr(opening, "load_motifs", made.__getitem__)
    for split, (images, labels) in made.items():
        source = open_source(config("motifs"), split=split)
        np.testing.assert_array_equal(source.item(3), images[3])
        assert source.name == f"motifs, {split}" and (source.labels == labels).all()
        assert len(source.class_names) == 10
    assert splits_of("motifs") == ("train", "test") and splits_of("stl10")[0] == "train+unlabeled"
    assert splits_of("./motifs") == ()


@pytest.mark.parametrize(
    "header", ["{'descr'{'descr': '|u1'", "}", "{'shape': (1,", "{'descr': '|O'}", "\0" * 9]
)
def test_an_array_with_a_damaged_header_is_refused(tmp_path: Path, header: str) -> None:
    """NumPy parses headers as Python, and raises SyntaxError, TokenError and others."""
    path = tmp_path / "images.npy"
    text = header.ljust(117).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + b"\0" * 500)
    with pytest.raises(DataError, match="cannot be read as a NumPy array"):
        open_source(config(path))
    assert find_shape(path) is None


def test_an_archive_named_npy_is_refused(tmp_path: Path) -> None:
    """NumPy opens it by its content, as something that is no array."""
    np.savez(tmp_path / "images.npz", np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "images.npz").rename(tmp_path / "images.npy")
    with pytest.raises(DataError, match="an archive, not an array"):
        open_source(config(tmp_path / "images.npy"))
