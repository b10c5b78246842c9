"""Packs of many shards: joined parts are the same as a set packed in one go, whoever packed them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byol.base.errors import DataError
from byol.base.locks import hold
from byol.data.pack import packing, parts, shards
from byol.data.pack.packed import Packed, open_pack
from byol.data.pack.partial import read_bad
from byol.data.pack.parts import Part, find_parts, folder_of_parts, shard_name
from byol.data.pack.rows import RowFile
from edits import edit_json
from sharding import Images, draw, pack_all, pack_in_parts, pack_part


def assert_same(joined: Packed, whole: Packed) -> None:
    """The same images, names, labels, statistics and list of images that were left out."""
    np.testing.assert_array_equal(joined.images, whole.images)
    for name in ("sizes", "labels"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    for name in ("class_names", "pixels", "clipped", "num_bad", "num_shrunk", "changed", "bits", "stored_px"):
        assert getattr(joined, name) == getattr(whole, name), name
    assert list(joined.names) == list(whole.names)
    assert list(read_bad(joined.folder)) == list(read_bad(whole.folder))
    for name in ("kept.npy", "row_checksums.npy", "counts.npy"):
        np.testing.assert_array_equal(np.load(joined.folder / name), np.load(whole.folder / name))


@pytest.mark.parametrize("count", [1, 3, 11])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_joined_parts_are_the_set_packed_in_one_go(tmp_path: Path, dtype: type, count: int) -> None:
    items = draw(40, dtype=dtype)
    items[5] = items[17] = items[18] = "cut short"
    whole = pack_all(Images(items), tmp_path / "whole")
    joined = pack_in_parts(Images(items), tmp_path / "p", count)
    assert (
        joined.note == f"joined the {count} part{'s' if count > 1 else ''} of set"
        and len(joined.shards) == count
    )
    assert_same(joined, whole)
    assert_same(open_pack(tmp_path / "p"), whole)
    assert pack_all(Images(items), tmp_path / "p").note == "found"
    assert sorted(os.listdir(tmp_path)) == [".p.lock", ".whole.lock", "p", "whole"]
    assert not list((tmp_path / "p").glob(".*"))


def test_a_part_of_which_no_image_can_be_read(tmp_path: Path) -> None:
    items = draw(12)
    items[3:6] = ["cut short"] * 3
    joined = pack_in_parts(Images(items), tmp_path / "p", 4)
    assert [shard.num_images for shard in joined.shards] == [3, 0, 3, 3]
    assert_same(joined, pack_all(Images(items), tmp_path / "whole"))


def test_how_many_may_be_left_out_is_a_question_to_the_whole_set(tmp_path: Path) -> None:
    items = draw(40)
    items[0:4] = ["cut short"] * 4
    joined = pack_in_parts(Images(items), tmp_path / "p", 8, max_bad=0.1)
    assert joined.num_bad == 4
    items[39] = "cut short"
    with pytest.raises(DataError, match=r"set: 5 of 40 images cannot be read \(data.max_bad is 0.1\)"):
        pack_in_parts(Images(items), tmp_path / "q", 8, max_bad=0.1)
    assert pack_all(Images(items), tmp_path / "q", max_bad=0.2).num_bad == 5


def test_missing_parts_are_named(tmp_path: Path) -> None:
    source = Images(draw(30))
    for number in (1, 4, 5, 6, 9):
        pack_part(source, tmp_path / "p", number, 10)
    with pytest.raises(DataError, match=r"p\.10-parts: parts 2-3, 7-8, 10 of 10 are not packed; pack each "):
        pack_all(source, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    for number in (1, 2):
        pack_part(source, tmp_path / "p", number, 2)
    assert pack_all(source, tmp_path / "p").note == "joined the 2 parts of set"
    shutil.rmtree(tmp_path / "p.10-parts")
    assert find_parts(tmp_path / "p") is None


def test_more_parts_than_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"part 2/7: set has only 5 images; use fewer parts"):
        pack_part(Images(draw(5)), tmp_path / "p", 2, 7)


def test_parts_with_other_settings_or_other_images_are_refused(tmp_path: Path) -> None:
    source = Images(draw(8))
    pack_part(source, tmp_path / "p", 1, 2)
    place = folder_of_parts(tmp_path / "p", 2) / shard_name(2)
    pack_all(Part(source, 2, 2), place, stored_px=8)
    with pytest.raises(DataError, match=r"shard-00002: was packed with other settings .* --part 2/2 with"):
        pack_all(source, tmp_path / "p")
    pack_part(source, tmp_path / "p", 2, 2)
    assert len(pack_all(source, tmp_path / "p")) == 8
    mixed = Images([*draw(4), *draw(4, shape=(9, 12, 1))])
    with pytest.raises(DataError, match=r"shard-00001 has 3 channels of 8 bit .*, shard-00002 has 1 channel"):
        pack_in_parts(mixed, tmp_path / "q", 2)


def test_a_larger_image_than_those_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SAMPLE", 2)
    items = draw(12, shape=(5, 4, 1))
    items[7] = np.zeros((7, 9, 1), dtype=np.uint8)
    assert pack_part(Images(items), tmp_path / "p", 1, 3).stored_px == 5
    with pytest.raises(DataError, match=r"part 2/3 of set: an image is larger .*add data.stored_px=9 to the"):
        pack_part(Images(items), tmp_path / "p", 2, 3)


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_killed_part_goes_on_where_it_was(tmp_path: Path, stop: int) -> None:
    source, place = Images(draw(20)), folder_of_parts(tmp_path / "p", 2) / shard_name(2)

    def kill(done: int, total: int) -> None:
        if done > stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packing.pack(
            Part(source, 2, 2), folder=place, stored_px=None, view_px=8, channels=None, max_bad=0.0,
            num_workers=1, progress=kill,
        )  # fmt: skip
    source.was_read.clear()
    joined = pack_in_parts(source, tmp_path / "p", 2)
    assert min(index for index in source.was_read if index >= 10) >= 10
    assert source.was_read.count(10) <= 1  # the first image of the part is not read again, but its size
    assert_same(joined, pack_all(source, tmp_path / "whole"))


_PACK_PART = """
import sys, time
from pathlib import Path
from sharding import Images, draw, pack_part
from byol.data.pack import partial
partial.SAVE_INTERVAL_S = 0.0
source = Images(draw(30))
item = source.item
source.item = lambda index: (time.sleep(0.02), item(index))[1]
print("begins", flush=True)
pack_part(source, Path(sys.argv[1]), 1, 1)
"""


@pytest.mark.slow
def test_a_part_killed_at_random_moments(tmp_path: Path) -> None:
    """kill -9 of a real process, four times; then it comes through, and the pack is as it should be."""
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "src")])}
    command = [sys.executable, "-c", _PACK_PART, str(tmp_path / "p")]
    for wait_s in np.random.default_rng(5).uniform(0.0, 0.7, 4):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"begins\n"
            time.sleep(float(wait_s))
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    source = Images(draw(30))
    joined = pack_all(source, tmp_path / "p")
    assert joined.note == "joined the 1 part of set"
    assert_same(joined, pack_all(source, tmp_path / "whole"))


def test_a_join_that_is_interrupted_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Images(draw(9))
    for number in (1, 2, 3):
        pack_part(source, tmp_path / "p", number, 3)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("byol.data.pack.joining.merge_statistics", fail)
        with pytest.raises(KeyboardInterrupt):
            pack_all(source, tmp_path / "p")
    with monkeypatch.context() as patch:
        patch.setattr("byol.data.pack.packing.move_into_place", fail)
        with pytest.raises(KeyboardInterrupt):
            pack_all(source, tmp_path / "p")
    assert_same(pack_all(source, tmp_path / "p"), pack_all(source, tmp_path / "whole"))


def test_a_second_process_on_a_part_waits(tmp_path: Path) -> None:
    source, said = Images(draw(6)), list[str]()
    place = folder_of_parts(tmp_path / "p", 2) / shard_name(1)

    class StopWaitingError(Exception):
        pass

    def note(line: str) -> None:
        said.append(line)
        raise StopWaitingError

    place.parent.mkdir()
    lock = place.with_name(f".{place.name}.lock")
    with hold(lock, while_busy=lambda holder: None), pytest.raises(StopWaitingError):
        packing.pack(
            Part(source, 1, 2), folder=place, stored_px=None, view_px=8, channels=None, max_bad=0.0,
            num_workers=1, say=note,
        )  # fmt: skip
    assert "is packing these images; waiting until it is done" in said[0]


# ---- Reading


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 33 images in 5 shards; tests that change it copy it."""
    return pack_in_parts(Images(draw(33)), tmp_path_factory.mktemp("joined") / "p", 5).folder


@pytest.fixture
def made(joined: Path, tmp_path: Path) -> tuple[Packed, np.ndarray]:
    """A pack of the test's own, and its images."""
    folder = Path(shutil.copytree(joined, tmp_path / "p"))
    return open_pack(folder), np.array(open_pack(joined).images)


def test_rows_of_all_shards_in_any_order(made: tuple[Packed, np.ndarray]) -> None:
    packed, images = made
    rng = np.random.default_rng(0)
    for rows in (rng.permutation(33), rng.integers(0, 33, 100), np.array([7, 7]), np.arange(0)):
        np.testing.assert_array_equal(packed.read(rows), images[rows])
    out = np.zeros((2, *images.shape[1:]), dtype=np.uint8)
    assert packed.file.read(np.array([32, 0]), out=out) is out
    np.testing.assert_array_equal(out, images[[32, 0]])


def test_few_files_are_open_at_once(made: tuple[Packed, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "most_files", lambda: 2)
    packed, images = open_pack(made[0].folder), made[1]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(33)
        np.testing.assert_array_equal(packed.read(rows), images[rows])
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before + 2


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: flip(folder / "shard-00003/images.npy", 400),
            "shard-00003/images.npy: is damaged at",
        ),
        (
            lambda folder: flip(folder / "shard-00003/images.npy", 3),
            "shard-00003/images.npy: is missing or dam",
        ),
        (lambda folder: os.truncate(folder / "shard-00003/images.npy", 200), "images.npy: is missing or cut"),
        (
            lambda folder: shutil.rmtree(folder / "shard-00002"),
            "shard-00002/images.npy: is missing or cut short",
        ),
        (lambda folder: flip(folder / "names.npy", 200), "names.npy: is damaged"),
        (lambda folder: flip(folder / "counts.npy", 200), "counts.npy: is damaged"),
    ],
)
def test_damage_is_found(
    made: tuple[Packed, np.ndarray], damage: Callable[[Path], None], message: str
) -> None:
    packed, _ = made
    damage(packed.folder)
    with pytest.raises(DataError, match=message):
        open_pack(packed.folder).read(np.arange(33))


@pytest.mark.parametrize("name", ["../shard-00001", "/etc", "", ".", "a/b"])
def test_a_shard_outside_the_folder_is_refused(made: tuple[Packed, np.ndarray], name: str) -> None:
    packed, _ = made
    shards_of = json.loads((packed.folder / "pack.json").read_bytes())["shards"]
    shards_of[0]["name"] = name
    edit_json(packed.folder / "pack.json", shards=shards_of)
    with pytest.raises(DataError, match=r"pack.json: does not fit to the files beside it"):
        open_pack(packed.folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("blake2b", "../../../outside"), ("blake2b", ""), ("bytes", 10**12), ("bytes", 0), ("num_images", -1)],
)
def test_a_shard_with_impossible_values_is_refused(
    made: tuple[Packed, np.ndarray], key: str, value: object
) -> None:
    packed, _ = made
    shards_of = json.loads((packed.folder / "pack.json").read_bytes())["shards"]
    shards_of[0][key] = value
    edit_json(packed.folder / "pack.json", shards=shards_of)
    with pytest.raises(
        DataError, match=r"pack.json: does not fit to the files beside it|is missing or cut short"
    ):
        open_pack(packed.folder)


def test_a_changed_index_is_refused_or_harmless(made: tuple[Packed, np.ndarray]) -> None:
    """One value of pack.json is replaced, without its checksum: a line, or the same images."""
    packed, images = made
    path = packed.folder / "pack.json"
    original, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    values = [None, -1, 0, 1.5, 2**70, "", "x", "../x", [], {}, [[]], True, {"a": 1}, "|O", "<u2", [1, 2, 3]]
    for _ in range(150):
        content = json.loads(original)
        content.pop("sha256")
        place: Any = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[rng.integers(len(keys))]
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
                break
            place = place[key]
        place[key] = values[rng.integers(len(values))]
        path.write_text(json.dumps(content))
        try:
            np.testing.assert_array_equal(open_pack(packed.folder).read(np.arange(33)), images)
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def test_the_row_file_of_a_shard_remembers_what_it_has_compared(made: tuple[Packed, np.ndarray]) -> None:
    packed, images = made
    packed.read(np.arange(33))
    flip(packed.folder / "shard-00001" / "images.npy", 128)
    assert isinstance(packed.file, shards.ShardedRows)
    packed.file.forget(0)
    with pytest.raises(DataError, match="damaged at image 0"):
        packed.read(np.arange(3))
    assert len(RowFile(packed.folder / "shard-00002" / "images.npy")) == packed.shards[1].num_images
    assert parts.shard_name(2) == "shard-00002" and len(images) == 33
