"""A set that grows by added images: only these are packed, or all where anything else has changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.base.errors import DataError
from byol.config import load_config
from byol.data.pack import growing, packing
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed, open_pack
from byol.data.pack.partial import read_bad

RNG = np.random.default_rng(3)


def write(path: Path, *, side: int = 12, channels: int = 3, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side, channels) if channels > 1 else (side, side)
    Image.fromarray(RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)).save(path)


def pack_folder(folder: Path, packs: Path, *settings: str) -> Packed:
    overrides = [
        f"data.source={folder}",
        f"data.packs={packs}",
        "data_transforms.input_shape=[16,16,null]",
        "data.stored_px=null",
        "data.max_bad=0.5",
        *settings,
    ]
    config = load_config(None, overrides, preset="classic")
    return open_images(config, packs / "run", console=None)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of two classes, one of them damaged."""
    for name in ("b/1.png", "b/3.png", "d/1.png", "d/2.png", "d/3.png"):
        write(tmp_path / "images" / name)
    (tmp_path / "images" / "b" / "2.png").write_bytes(b"no image")
    return tmp_path / "images"


def add_some(images: Path) -> None:
    """Before, between and behind those that are there, and in a new class."""
    for name in ("a/1.png", "b/0.png", "b/2b.png", "d/4.png", "e/1.png"):
        write(images / name)
    (images / "e" / "2.png").write_bytes(b"no image either")


def assert_like_a_new_pack(packed: Packed, images: Path, packs: Path) -> None:
    """All but the order of the images is as if they had been packed in one go."""
    whole = pack_folder(images, packs / "whole")
    order = np.argsort(list(packed.names))
    assert not whole.shards and list(whole.names) == sorted(whole.names)
    assert [packed.names[int(row)] for row in order] == list(whole.names)
    np.testing.assert_array_equal(packed.read(order), whole.images)
    np.testing.assert_array_equal(packed.labels[order], whole.labels)
    np.testing.assert_array_equal(packed.sizes[order], whole.sizes)
    kept = np.load(packed.folder / "kept.npy")
    np.testing.assert_array_equal(kept[order], np.load(whole.folder / "kept.npy"))
    for name in ("pixels", "class_names", "num_bad", "stored_px", "clipped", "changed"):
        assert getattr(packed, name) == getattr(whole, name)
    assert sorted(read_bad(packed.folder)) == sorted(read_bad(whole.folder))


def test_only_added_images_are_packed(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pack_folder(images, tmp_path / "packs")
    add_some(images)
    read: list[str] = []
    square = packing.read_square
    monkeypatch.setattr(
        packing, "read_square", lambda item, **how: (read.append(item), square(item, **how))[1]
    )
    packed = pack_folder(images, tmp_path / "packs")
    assert sorted(Path(name).relative_to(images).as_posix() for name in read) == [
        "a/1.png", "b/0.png", "b/2b.png", "d/4.png", "e/1.png", "e/2.png",
    ]  # fmt: skip
    assert packed.note == f"added 6 new images to the 6 of the pack {before.folder.name}"
    assert [shard.num_images for shard in packed.shards] == [5, 5] and packed.num_bad == 2
    np.testing.assert_array_equal(packed.images[:5], before.images)
    assert_like_a_new_pack(packed, images, tmp_path)
    assert pack_folder(images, tmp_path / "packs").note == "found"
    assert open_pack(before.folder).fingerprint == before.fingerprint  # runs on the earlier pack go on
    shard = packed.folder / packed.shards[0].path
    assert os.stat(shard).st_ino == os.stat(before.folder / "images.npy").st_ino  # not a second copy
    assert not [path for path in (tmp_path / "packs").iterdir() if path.name.endswith(".added")]


def test_a_set_grows_again_and_again(tmp_path: Path, images: Path) -> None:
    pack_folder(images, tmp_path / "packs")
    for number in range(3):
        write(images / "c" / f"{number}.png")
        packed = pack_folder(images, tmp_path / "packs")
        assert len(packed.shards) == number + 2
    assert_like_a_new_pack(packed, images, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda images: write(images / "d/1.png", side=12),
        lambda images: os.utime(images / "d/1.png", (1e9, 1e9)),
        lambda images: (images / "d/1.png").unlink(),
        lambda images: (images / "d/1.png").rename(images / "d/1b.png"),
        lambda images: write(images / "a/large.png", side=19),  # the stored size would be another
        lambda images: write(images / "b/2.png"),  # the damaged image is replaced
    ],
)
def test_all_are_packed_anew_where_more_has_changed(
    tmp_path: Path, images: Path, change: Callable[[Path], object]
) -> None:
    pack_folder(images, tmp_path / "packs")
    add_some(images)
    change(images)
    packed = pack_folder(images, tmp_path / "packs")
    assert packed.note == "packed" and not packed.shards
    assert not [path for path in (tmp_path / "packs").iterdir() if path.name.endswith(".added")]


@pytest.mark.parametrize(
    "setting", ["data.geometry=scale", "data.stored_px=18", "data.clip=0", "data.alpha=keep"]
)
def test_all_are_packed_anew_with_other_settings(tmp_path: Path, images: Path, setting: str) -> None:
    pack_folder(images, tmp_path / "packs")
    add_some(images)
    assert pack_folder(images, tmp_path / "packs", setting).note == "packed"


def test_without_links_and_after_an_interruption(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_folder(images, tmp_path / "packs")
    add_some(images)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for name in ("link_files", "write_index"):
        with monkeypatch.context() as patch:
            patch.setattr(growing, name, fail)
            with pytest.raises(KeyboardInterrupt):
                pack_folder(images, tmp_path / "packs")
    packed = pack_folder(images, tmp_path / "packs")
    assert packed.note.startswith("added 6 new images")
    assert_like_a_new_pack(packed, images, tmp_path)


def test_added_images_with_other_channels_are_named(tmp_path: Path, images: Path) -> None:
    pack_folder(images, tmp_path / "packs")
    write(images / "c" / "grey.png", channels=1)
    with pytest.raises(
        DataError, match=r"5 of 3 channels, 1 of 1 channel \(the first of these is 'c/grey.png'"
    ):
        pack_folder(images, tmp_path / "packs")
    assert len(pack_folder(images, tmp_path / "packs", "data.channels=grey")) == 6


def test_a_list_that_grows(tmp_path: Path, images: Path) -> None:
    names = sorted(path.relative_to(tmp_path).as_posix() for path in images.rglob("*.png"))
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(names[:4]) + "\n")
    pack_folder(listed, tmp_path / "packs")
    listed.write_text("\n".join(names) + "\n")
    assert pack_folder(listed, tmp_path / "packs").note.startswith("added 2 new images to the 4 of the pack")
    shutil.rmtree(tmp_path / "packs")
    assert pack_folder(listed, tmp_path / "packs").note == "packed"
