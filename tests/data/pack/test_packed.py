"""Packing: exact contents, every way a packing can be stopped, refused, found again or damaged."""

import builtins
import csv
import errno
import hashlib
import io
import json
import mmap
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol.base import disk, locks
from byol.base.console import silent
from byol.base.errors import DataError
from byol.config import load_config
from byol.data.decode.fitting import fit, place_on_canvas
from byol.data.decode.formats import Geometry, ImageArray
from byol.data.decode.image import DECODER
from byol.data.decode.index import Source
from byol.data.decode.reading import ON_WHITE
from byol.data.pack import packing, partial, running_statistics
from byol.data.pack.images import open_images
from byol.data.pack.packed import FILES, Packed, digest_file, open_pack
from byol.data.pack.packing import pack
from byol.data.pack.statistics import count_values, summarise
from byol.data.sources.opening import left_out_of, open_folder, open_source
from edits import edit_json

RNG = np.random.default_rng(0)


@dataclass
class Images:
    """A source of arrays and of reasons why there is none; notes what is read."""

    items: Sequence[ImageArray | str]
    name: str = "set"
    stamp: str = "1"
    labels: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))
    class_names: tuple[str, ...] = ("a", "b")
    was_read: list[int] = field(default_factory=list)
    file_bytes: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.labels = np.arange(len(self.items)) % 2

    def __len__(self) -> int:
        return len(self.items)

    def names(self, index: int) -> str:
        return f"日本/{index}\udce9.png"

    def fingerprint(self) -> str:
        return self.stamp

    def item(self, index: int) -> ImageArray:
        self.was_read.append(index)
        item = self.items[index]
        if isinstance(item, str):
            raise DataError(item)
        return item


def draw(*shapes: tuple[int, ...], dtype: type = np.uint8) -> list[ImageArray]:
    return [RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype) for shape in shapes]


def pack_into(
    folder: Path,
    source: Source,
    *,
    stored_px: int | None = None,
    view_px: int = 8,
    channels: object = None,
    max_bad: float = 0.5,
    geometry: Geometry = "square",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = silent,
) -> Packed:
    return pack(
        source,
        folder=folder,
        stored_px=stored_px,
        view_px=view_px,
        channels=channels,
        max_bad=max_bad,
        num_workers=2,
        geometry=geometry,
        progress=progress,
        say=say,
    )


def read_bad(folder: Path) -> list[list[str]]:
    with (folder / "bad_files.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def test_what_is_packed_and_read_back(tmp_path: Path) -> None:
    images = draw((20, 30, 3), (9, 4, 3), (8, 8, 3), (1, 1, 3))
    source = Images([*images[:2], 'cut\n"short"', *images[2:]])
    steps: list[tuple[int, int]] = []
    packed = pack_into(tmp_path / "p", source, progress=lambda done, total: steps.append((done, total)))
    assert packed.stored_px == 10 and packed.channels == 3 and len(packed) == 4  # 1.15 x 8, rounded up
    np.testing.assert_array_equal(packed.images, np.stack([fit(image, 10) for image in images]))
    assert packed.sizes.tolist() == [[20, 30], [9, 4], [8, 8], [1, 1]] and packed.sizes.dtype == np.int32
    assert list(packed.names) == [source.names(index) for index in (0, 1, 3, 4)]
    assert packed.labels.tolist() == [0, 1, 1, 0] and packed.class_names == ("a", "b")
    assert packed.num_bad == 1 and packed.note == "packed"
    assert read_bad(packed.folder) == [["file", "reason"], [source.names(2), 'cut\\n"short"']]
    assert steps == [(done, 5) for done in range(1, 6)]
    assert isinstance(packed.images, np.memmap) and not packed.images.flags.writeable
    rows = np.array([3, 0])
    np.testing.assert_array_equal(packed.read(rows), packed.images[rows])
    again = open_pack(tmp_path / "p")
    np.testing.assert_array_equal(again.images, packed.images)
    assert (again.pixels, again.fingerprint) == (packed.pixels, packed.fingerprint)
    assert digest_file(again.folder / "images.npy") == again.fingerprint
    assert sorted(os.listdir(tmp_path)) == [".p.lock", "p"]
    assert sorted(os.listdir(tmp_path / "p")) == sorted(FILES)


@pytest.mark.parametrize(
    ("shapes", "stored_px", "expected"),
    [
        ([(8, 8, 1)] * 3, None, 8),  # one size: kept as it is
        ([(8, 5, 1), (9, 3, 1)], None, 9),  # the largest side, below 1.15 views
        ([(8, 5, 1), (900, 3, 1)], None, 10),
        ([(8, 8, 1)] * 3, 16, 16),  # as asked, also beyond the source
    ],
)
def test_the_stored_size(
    tmp_path: Path, shapes: list[tuple[int, ...]], stored_px: int | None, expected: int
) -> None:
    source = Images(draw(*shapes))
    packed = pack_into(tmp_path / "p", source, stored_px=stored_px)
    assert packed.stored_px == expected
    if expected == 8:
        np.testing.assert_array_equal(packed.images, np.stack(source.items))


@pytest.mark.parametrize("stop", [None, 7])
def test_a_larger_image_than_those_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None
) -> None:
    """The stored size is as if all had been looked at, also if packing is stopped before it is met."""
    monkeypatch.setattr(packing, "SAMPLE", 2)
    items: list[ImageArray | str] = list(draw(*[(5, 4, 1)] * 9, (7, 9, 1), *[(5, 4, 1)] * 2))

    def kill(done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            pack_into(tmp_path / "p", Images(items), progress=kill)
    packed = pack_into(tmp_path / "p", Images(items))
    assert packed.stored_px == 9 and packed.sizes[9].tolist() == [7, 9]
    np.testing.assert_array_equal(packed.images, np.stack([fit(image, 9) for image in items]))
    beyond = Images([*items[:9], *draw((30, 3, 1))])
    assert pack_into(tmp_path / "beyond", beyond).stored_px == 10
    uniform = Images(items[:9])
    assert pack_into(tmp_path / "uniform", uniform).stored_px == 5
    assert len(uniform.was_read) == 9 + 2  # each once, and those whose size was looked at


def test_one_image_can_be_packed(tmp_path: Path) -> None:
    packed = pack_into(tmp_path / "p", Images([np.full((8, 8, 1), 7, dtype=np.uint8)]))
    assert len(packed) == 1 and packed.pixels.std == (1.0,) and packed.pixels.mean == (7 / 255,)


# ---- Statistics


def test_statistics_of_8_bit(tmp_path: Path) -> None:
    images = np.stack(draw(*[(8, 8, 2)] * 50))
    pixels = pack_into(tmp_path / "p", Images(list(images))).pixels
    assert (pixels.low, pixels.high) == ((0.0, 0.0), (255.0, 255.0))
    np.testing.assert_allclose(pixels.mean, (images / 255.0).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(pixels.std, (images / 255.0).std((0, 1, 2)), rtol=1e-12)


def test_statistics_of_16_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 bits in a 16-bit file: the range is where the values are, a few stray pixels aside."""
    monkeypatch.setattr(running_statistics, "CHUNK_BYTES", 1000)  # several chunks
    images = RNG.integers(90, 4096, (60, 8, 8, 2)).astype(np.uint16)
    images[0, 0, 0, 0] = 65535
    pixels = pack_into(tmp_path / "p", Images(list(images))).pixels
    flat = images.reshape(-1, 2).astype(float)
    low, high = np.percentile(flat, [0.1, 99.9], axis=0, method="inverted_cdf")
    assert pixels.smallest == tuple(flat.min(0)) and pixels.largest == tuple(flat.max(0))
    assert pixels.low == tuple(low) and pixels.high == tuple(high) and max(high) < 4096
    x = ((flat - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(pixels.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(pixels.std, x.std(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("centre", "spread"), [(0.0, 1.0), (-1000.0, 30.0), (300.0, 20.0), (1e-20, 1e-21), (3e30, 1e29)]
)
def test_statistics_of_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, centre: float, spread: float
) -> None:
    """To 1 part in 512 of the values, wherever they lie; the smallest and the largest exactly."""
    monkeypatch.setattr(running_statistics, "CHUNK_BYTES", 2000)
    images = RNG.normal(centre, spread, (60, 8, 8, 2)).astype(np.float32)
    images[3, 1, 1, 0] = centre + 1e4 * spread
    packed = pack_into(tmp_path / "p", Images(list(images)))
    np.testing.assert_array_equal(packed.images, images)
    assert packed.images.dtype == np.float32 and packed.bits == 32
    pixels, flat = packed.pixels, images.reshape(-1, 2).astype(float)
    assert pixels.smallest == tuple(flat.min(0)) and pixels.largest == tuple(flat.max(0))
    low, high = np.percentile(flat, [0.1, 99.9], axis=0, method="inverted_cdf")
    np.testing.assert_allclose(pixels.low, low, rtol=1 / 512)
    np.testing.assert_allclose(pixels.high, high, rtol=1 / 512)
    assert (pixels.low <= low).all() and (high <= pixels.high).all()
    x = ((flat - pixels.low) / (np.array(pixels.high) - pixels.low)).clip(0, 1)
    error = max(1.0, abs(centre / spread)) / 512 / 5
    np.testing.assert_allclose(pixels.mean, x.mean(0), atol=error)
    np.testing.assert_allclose(pixels.std, x.std(0), atol=error)


def test_floats_that_hardly_differ_keep_their_range(tmp_path: Path) -> None:
    """All of one kind by their first bits: the exact extremes are the range."""
    images = np.linspace(1000.25, 1000.75, 4 * 64, dtype=np.float32).reshape(4, 8, 8, 1)
    pixels = pack_into(tmp_path / "p", Images(list(images))).pixels
    assert (pixels.low, pixels.high) == ((1000.25,), (1000.75,))
    constant = pack_into(tmp_path / "c", Images([np.full((8, 8, 1), -3e9, dtype=np.float32)])).pixels
    assert (constant.low, constant.high, constant.mean, constant.std) == ((-3e9,), (-3e9 + 1,), (0,), (1,))


def test_a_constant_16_bit_channel_has_a_range_and_a_spread() -> None:
    statistics = summarise(count_values(np.full((2, 4, 4, 1), 700, dtype=np.uint16)))
    assert (statistics.low, statistics.high) == ((700.0,), (701.0,))
    assert (statistics.mean, statistics.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_files_of_any_channels_and_depth(tmp_path: Path, channels: int, dtype: type) -> None:
    images = RNG.integers(0, 250, (3, 8, 8, channels)).astype(dtype)
    (tmp_path / "set").mkdir()
    for number, image in enumerate(images):
        pages = np.moveaxis(image, 2, 0)
        tifffile.imwrite(tmp_path / "set" / f"{number}.tif", pages, photometric="minisblack")
    source = open_source(load_config(None, [], preset="default").data, source=str(tmp_path / "set"))
    packed = pack_into(tmp_path / "p", source)
    np.testing.assert_array_equal(packed.images, images, strict=True)
    assert packed.channels == channels and len(packed.pixels.low) == channels


# ---- At their own scale


def test_on_canvases_sizes_are_those_of_the_canvas_and_shrunk_images_are_counted(tmp_path: Path) -> None:
    source = Images([*draw((8, 5, 1), (3, 3, 1), (1, 1, 1), (1, 500, 1), (30, 20, 1)), "broken"])
    packed = pack_into(tmp_path / "p", source, geometry="scale")
    assert packed.stored_px == 10 and packed.num_shrunk == 2
    assert packed.sizes.tolist() == [[10, 10]] * 5
    expected = [place_on_canvas(image, 10) for image in source.items[:5]]
    np.testing.assert_array_equal(packed.images, np.stack(expected))
    assert open_pack(tmp_path / "p").num_shrunk == 2
    whole = pack_into(tmp_path / "whole", source, geometry="scale", stored_px=500)
    assert whole.num_shrunk == 0 and whole.stored_px == 500
    squashed = pack_into(tmp_path / "p", source)
    assert (
        squashed.note
        == "packed again: data.stored_px, data.channels, data.geometry, data.alpha or data.clip differ"
    )
    assert squashed.num_shrunk == 0 and squashed.sizes.tolist()[4] == [30, 20]


def test_the_geometry_of_the_configuration_is_that_of_the_pack(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(np.eye(12, 9, dtype=np.uint8) * 255).save(tmp_path / "set" / "1.png")
    packs = {}
    for geometry in ("square", "scale"):
        overrides = [f"data.source={tmp_path / 'set'}", f"data.geometry={geometry}"]
        config = load_config(None, overrides, preset="classic")
        packs[geometry] = open_images(config, tmp_path / "runs" / "a", console=None)
    assert packs["square"].folder != packs["scale"].folder
    assert packs["square"].sizes.tolist() == [[12, 9]] and packs["scale"].sizes.tolist() == [[12, 12]]
    np.testing.assert_array_equal(packs["scale"].images[0, :, 1:10, 0], np.eye(12, 9) * 255)


# ---- Kinds of images


@pytest.mark.parametrize(
    ("channels", "shapes", "expected"),
    [
        (None, [(8, 8, 13)] * 2, 13),
        ("rgb", [(8, 8, 1), (8, 8, 3)], 3),
        ("grey", [(8, 8, 1), (8, 8, 3)], 1),
        ([4, 0], [(8, 8, 5), (8, 8, 6)], 2),
    ],
)
def test_channels(tmp_path: Path, channels: object, shapes: list[tuple[int, ...]], expected: int) -> None:
    source = Images(draw(*shapes))
    packed = pack_into(tmp_path / "p", source, channels=channels)
    assert packed.channels == expected
    if isinstance(channels, list):
        np.testing.assert_array_equal(packed.images[1], source.items[1][..., channels])


@pytest.mark.parametrize(
    ("items", "channels", "reason"),
    [
        (
            draw((8, 8, 1), *[(8, 8, 3)] * 4),
            None,
            r"4 of 3 channels, 1 of 1 channel .*'日本/0\\xe9.png'\); set data.chan",
        ),
        (
            draw(*[(8, 8, 5)] * 2, (8, 8, 3)),
            None,
            r"2 of 5 channels, 1 of 3 channels .*日本/2.*; choose some",
        ),
        (
            [*draw(*[(8, 8, 1)] * 3), *draw((8, 8, 1), dtype=np.uint16)],
            "grey",
            r"3 of 8 bit, 1 of 16 bit \(the first of these is '日本/3.*convert the files of one kind",
        ),
        (
            [*draw(*[(8, 8, 1)] * 3, dtype=np.uint16), np.zeros((8, 8, 1), dtype=np.float32)],
            None,
            r"3 of 16 bit, 1 of 32 bit \(the first of these is '日本/3.*convert the files of one kind",
        ),
    ],
)
def test_mixed_kinds_are_refused_with_counts_and_a_name(
    tmp_path: Path, items: list[ImageArray], channels: object, reason: str
) -> None:
    with pytest.raises(DataError, match="set: the images differ: " + reason) as caught:
        pack_into(tmp_path / "p", Images([*items, "broken"]), channels=channels)
    assert "\n" not in str(caught.value) and not (tmp_path / "p").exists()


# ---- Bad images


def test_one_in_a_hundred_is_skipped_and_two_stop(tmp_path: Path) -> None:
    good = draw(*[(4, 4, 1)] * 98)
    one = Images([*good, "not an image", *draw((4, 4, 1))])
    assert len(pack_into(tmp_path / "one", one, max_bad=0.01)) == 99
    two = Images([*good, "not an image", "cut short"])
    with pytest.raises(
        DataError, match=r"2 of 100 images cannot be read .*'日本/98.*: not an image; "
    ) as caught:
        pack_into(tmp_path / "two", two, max_bad=0.01)
    listed = tmp_path / "two.partial"
    assert str(listed / "bad_files.csv") in str(caught.value) and len(read_bad(listed)) == 3
    assert not (tmp_path / "two").exists()
    # With more allowed nothing is read again.
    two.was_read.clear()
    assert len(pack_into(tmp_path / "two", two, max_bad=0.02)) == 98 and two.was_read == []
    with pytest.raises(DataError, match="2 of 100 images cannot be read"):
        pack_into(tmp_path / "two", two, max_bad=0.01)


def test_nothing_but_bad_images_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 of 3 images cannot be read"):
        pack_into(tmp_path / "p", Images(["empty"] * 3), max_bad=1.0)


# ---- Stopped, found, repacked


@pytest.mark.parametrize("stops", [[5], [1, 6, 7, 12]])
def test_a_stopped_packing_goes_on_where_it_was(tmp_path: Path, stops: list[int]) -> None:
    items: list[ImageArray | str] = list(draw(*[(7, 9, 2)] * 14, dtype=np.uint16))
    items[0] = items[3] = "broken"
    whole = pack_into(tmp_path / "whole", Images(items))
    for stop in stops:

        def kill(done: int, total: int, at: int = stop) -> None:
            if done == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pack_into(tmp_path / "p", Images(items), progress=kill)
        assert not (tmp_path / "p").exists()
    rest = Images(items)
    packed = pack_into(tmp_path / "p", rest)
    assert sorted(rest.was_read) == list(range(stops[-1], 14))
    assert packed.fingerprint == whole.fingerprint and packed.pixels == whole.pixels
    assert packed.sizes.tolist() == whole.sizes.tolist() and list(packed.names) == list(whole.names)
    assert read_bad(packed.folder) == read_bad(whole.folder)


def test_what_a_killed_process_wrote_after_its_last_mark_is_overwritten(tmp_path: Path) -> None:
    """`kill -9`: the files are longer than the mark says."""
    items = [*draw(*[(8, 8, 1)] * 6), "broken", *draw(*[(8, 8, 1)] * 3)]
    whole = pack_into(tmp_path / "whole", Images(items))

    def kill(done: int, total: int) -> None:
        if done in (4, 9):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_into(tmp_path / "p", Images(items), progress=kill)
    mark = (tmp_path / "p.partial" / "progress.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        pack_into(tmp_path / "p", Images(items), progress=kill)
    (tmp_path / "p.partial" / "progress.json").write_bytes(mark)
    rest = Images(items)
    packed = pack_into(tmp_path / "p", rest)
    assert sorted(rest.was_read) == list(range(4, 10)) and packed.fingerprint == whole.fingerprint
    assert read_bad(packed.folder) == read_bad(whole.folder)


def test_a_second_start_finds_the_pack_and_takes_the_labels_of_now(tmp_path: Path) -> None:
    items = draw(*[(8, 8, 1)] * 4)
    pack_into(tmp_path / "p", Images(items))
    source = Images(items, class_names=("x", "y", "z"))
    source.labels = np.array([2, 1, 0, -1])
    packed = pack_into(tmp_path / "p", source)
    assert packed.note == "found" and source.was_read == []
    assert packed.labels.tolist() == [2, 1, 0, -1] and packed.class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("dtype", "channels", "note"), [("u1", 3, "found"), ("u1", 5, "packed again"), ("u2", 1, "packed again")]
)
def test_a_pack_of_the_decoder_before_is_kept_where_it_read_alike(
    tmp_path: Path, dtype: str, channels: int, note: str
) -> None:
    images = [image.astype(dtype) for image in draw(*[(8, 8, channels)] * 4)]
    pack_into(tmp_path / "p", Images(images))
    edit_json(tmp_path / "p" / "pack.json", lambda content: content["recipe"].update(decoder=DECODER - 1))
    assert pack_into(tmp_path / "p", Images(images)).note.startswith(note)


@pytest.mark.parametrize("change", ["source", "size", "channels", "decoder", "damage", "format"])
def test_a_pack_that_does_not_fit_is_made_again(tmp_path: Path, change: str) -> None:
    source = Images(draw(*[(8, 8, 1)] * 4))
    before = pack_into(tmp_path / "p", source)
    (tmp_path / "p" / "notes.txt").write_text("the user's own")
    stored_px, channels, note = None, None, "packed again: "
    if change == "source":
        source, note = Images(draw(*[(8, 8, 1)] * 3), stamp="2"), note + "the source has changed"
    elif change == "size":
        stored_px, note = (
            5,
            note + "data.stored_px, data.channels, data.geometry, data.alpha or data.clip differ",
        )
    elif change == "decoder":
        # as packs were written at first
        edit_json(tmp_path / "p" / "pack.json", lambda content: content["recipe"].pop("decoder"))
        note += "an earlier version of byol decoded the images in another way"
    elif change == "channels":
        channels, note = (
            "rgb",
            note + "data.stored_px, data.channels, data.geometry, data.alpha or data.clip differ",
        )
    elif change == "damage":
        (tmp_path / "p" / "sizes.npy").write_bytes((tmp_path / "p" / "sizes.npy").read_bytes()[:-1] + b"\7")
        note += f"{tmp_path}/p/sizes.npy: is damaged"
    else:
        (tmp_path / "p" / "pack.json").write_text(json.dumps({"format": 99}))
        note += f"{tmp_path}/p/pack.json: has format 99"
    packed = pack_into(tmp_path / "p", source, stored_px=stored_px, channels=channels)
    assert packed.note.startswith(note)
    assert packed.images.shape == {
        "source": (3, 8, 8, 1),
        "size": (4, 5, 5, 1),
        "channels": (4, 8, 8, 3),
    }.get(change, (4, 8, 8, 1))
    assert before.images.shape == (4, 8, 8, 1) and before.images.sum() > 0  # still mapped, still there
    assert os.listdir(tmp_path / "p.old") == ["notes.txt"]
    assert pack_into(tmp_path / "p", source, stored_px=stored_px, channels=channels).note == "found"


def test_a_stopped_packing_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_into(tmp_path / "p", Images([*draw(*[(8, 8, 3)] * 5)]), progress=kill)
    other = Images(draw(*[(6, 6, 1)] * 4), stamp="2")
    np.testing.assert_array_equal(pack_into(tmp_path / "p", other).images, np.stack(other.items))


def test_the_fingerprint_is_of_the_values_alone(tmp_path: Path) -> None:
    items = draw(*[(8, 8, 1)] * 4)
    one, two = (pack_into(tmp_path / stamp, Images(items, stamp=stamp)) for stamp in "12")
    assert one.fingerprint == two.fingerprint
    assert pack_into(tmp_path / "3", Images(items[::-1])).fingerprint != one.fingerprint


def test_two_at_once_pack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, shows how far that is, and finds the pack."""
    monkeypatch.setattr(locks, "POLL_S", 0.005)
    monkeypatch.setattr(partial, "SAVE_INTERVAL_S", 0.0)
    items = draw(*[(8, 8, 1)] * 30)
    second = Images(items)
    shown: list[tuple[int, int]] = []
    said: list[str] = []
    results: list[Packed] = []
    was_shown = threading.Event()

    def show(done: int, total: int) -> None:
        shown.append((done, total))
        if said:
            was_shown.set()

    thread = threading.Thread(
        target=lambda: results.append(pack_into(tmp_path / "p", second, progress=show, say=said.append))
    )

    def start_second(done: int, total: int) -> None:
        if done == 10:
            thread.start()
            assert was_shown.wait(10)

    packed = pack_into(tmp_path / "p", Images(items), progress=start_second)
    thread.join(10)
    assert packed.note == "packed" and results[0].note == "found" and second.was_read == []
    assert shown[0][0] <= 10 and shown[0][1] == 30
    assert len(said) == 1 and f"process {os.getpid()} on " in said[0] and "waiting" in said[0]


# ---- Folders that cannot be used, and damage


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"p: holds files but no pack; choose another place with data\.packs"):
        pack_into(tmp_path / "p", Images(draw((8, 8, 1))))
    assert os.listdir(tmp_path / "p") == ["thesis.tex"]


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/p: cannot be written \(a file is where a folder must be\)"):
        pack_into(tmp_path / "file" / "p", Images(draw((8, 8, 1))))
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * 8 * 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        DataError, match=r"p\.partial: the packed images need .* GB, but 0\.0 GB are free; free space"
    ):
        pack_into(tmp_path / "p", Images(draw(*[(8, 8, 1)] * 3)))


def test_a_disk_that_fills_up_is_one_line_and_the_packing_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Images(draw(*[(8, 8, 1)] * 6))
    append = packing.PartialPack.append

    def fill(writer: packing.PartialPack, index: int, *given: object, **named: object) -> None:
        if index == 4:
            raise OSError(28, "No space left on device")
        append(writer, index, *given, **named)

    monkeypatch.setattr(packing.PartialPack, "append", fill)
    with pytest.raises(
        DataError, match=r"cannot be written \(No space left on device\); free space or choose"
    ):
        pack_into(tmp_path / "p", source)
    monkeypatch.undo()
    source.was_read.clear()
    np.testing.assert_array_equal(pack_into(tmp_path / "p", source).images, np.stack(source.items))
    assert sorted(source.was_read) == [4, 5]


def test_an_opened_pack_is_mapped(tmp_path: Path) -> None:
    """Of a million images the small arrays are 60 MB; they are read as they are looked at."""
    pack_into(tmp_path / "p", Images(draw(*[(8, 8, 1)] * 4)))
    packed = open_pack(tmp_path / "p")
    for array in (packed.sizes, packed.labels, packed.names.blob, packed.names.offsets):
        assert isinstance(array.base, np.memmap)


def test_damage_is_noticed(tmp_path: Path) -> None:
    packed = pack_into(tmp_path / "p", Images(draw(*[(8, 8, 1)] * 4)))
    with (tmp_path / "p" / "images.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(DataError, match=r"images\.npy: is missing or cut short; delete"):
        open_pack(packed.folder)
    (tmp_path / "p" / "pack.json").write_text('{"form')
    with pytest.raises(DataError, match=r"pack\.json: is damaged"):
        open_pack(packed.folder)
    with pytest.raises(DataError, match="is not a pack"):
        open_pack(tmp_path / "elsewhere")


# ---- Disks that fail, and what is changed in images


def write_files(folder: Path, num: int = 6) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(num)]
    for path in paths:
        Image.fromarray(RNG.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files that the disk does not give; pauses are none."""
    names: set[str] = set()
    real = builtins.open

    def faulty(file: Any, *rest: Any, **named: Any) -> Any:
        if os.path.basename(str(file)) in names:
            raise OSError(errno.EIO, "Input/output error", str(file))
        return real(file, *rest, **named)

    monkeypatch.setattr(builtins, "open", faulty)
    monkeypatch.setattr(disk, "PAUSES_S", (0.0,))
    return names


def test_a_disk_that_fails_stops_the_packing_which_then_goes_on(tmp_path: Path, failing: set[str]) -> None:
    write_files(tmp_path / "set")
    source = open_folder(tmp_path / "set")
    failing.add("4.png")
    with pytest.raises(DataError, match=r"set/4\.png: .*Input/output error, errno 5") as caught:
        pack_into(tmp_path / "p", source)
    assert "repeat the command" in str(caught.value) and not (tmp_path / "p").exists()
    failing.clear()
    packed = pack_into(tmp_path / "p", source)
    assert len(packed) == 6 and packed.num_bad == 0 and read_bad(packed.folder) == [["file", "reason"]]


def test_what_was_left_out_for_the_disk_is_tried_again(tmp_path: Path, failing: set[str]) -> None:
    write_files(tmp_path / "set")
    source = open_folder(tmp_path / "set", skip_unreadable=True)
    failing.update({"1.png", "4.png"})
    packed = pack_into(tmp_path / "p", source, max_bad=0.0)  # allowed by the other key
    assert len(packed) == 4 and packed.num_bad == 2
    failing.remove("1.png")
    packed = pack_into(tmp_path / "p", source, max_bad=0.0)
    assert len(packed) == 5 and packed.note.startswith("packed again: 1 images that could not be read")
    assert pack_into(tmp_path / "p", source, max_bad=0.0).note == "found"  # the disk still fails: kept
    with pytest.raises(DataError, match=r"4\.png: .*errno 5"):
        pack_into(tmp_path / "p", open_folder(tmp_path / "set"))


@pytest.mark.parametrize(
    "reason",
    ["cannot be opened (Input/output error)", "is damaged or cut short ([Errno 116] Stale file handle)"],
)
def test_a_pack_of_an_earlier_version_that_lacks_images_for_the_disk(tmp_path: Path, reason: str) -> None:
    paths = write_files(tmp_path / "set")
    image = paths[2].read_bytes()
    paths[2].write_bytes(b"broken".ljust(len(image)))
    os.utime(paths[2], (1, 1))
    source = open_folder(tmp_path / "set")
    assert pack_into(tmp_path / "p", source).num_bad == 1
    paths[2].write_bytes(image)
    os.utime(paths[2], (1, 1))
    assert pack_into(tmp_path / "p", source).note == "found"
    rewrite_bad(tmp_path / "p", f'file,reason\n2.png,"{reason}"\n'.encode())
    packed = pack_into(tmp_path / "p", source)
    assert packed.note.startswith("packed again: 1 images") and len(packed) == 6 and packed.num_bad == 0


def rewrite_bad(folder: Path, content: bytes) -> None:
    (folder / "bad_files.csv").write_bytes(content)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    entry = {"bytes": len(content), "blake2b": digest}
    edit_json(folder / "pack.json", lambda found: found["files"].update({"bad_files.csv": entry}))


def test_changes_are_counted_also_when_packing_is_continued(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for path in write_files(folder, 5)[1:4]:
        pixels = np.asarray(Image.open(path))
        Image.fromarray(np.dstack([pixels, np.eye(9, dtype=np.uint8) * 255])).save(path)
    source = open_folder(folder)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_into(tmp_path / "p", source, progress=stop)
    for packed in (pack_into(tmp_path / "p", source), pack_into(tmp_path / "p", source)):
        ((text, few),) = packed.changed.items()
        assert text == ON_WHITE and few.count == 3 and few.names == ["1.png", "2.png", "3.png"]


def test_transparency_is_part_of_what_a_pack_is(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (path,) = write_files(folder, 1)
    pixels = np.asarray(Image.open(path))
    Image.fromarray(np.dstack([pixels, np.eye(9, dtype=np.uint8) * 255])).save(path)
    packs = {}
    for alpha in ("auto", "drop", "keep"):
        overrides = [f"data.source={folder}", f"data.alpha={alpha}"]
        config = load_config(None, overrides, preset="default")
        packs[alpha] = open_images(
            config.model_copy(
                update={"data_transforms": load_config(None, [], preset="classic").data_transforms}
            ),
            tmp_path / "runs" / "a",
            console=None,
        )
    assert len({pack.folder for pack in packs.values()}) == 3
    np.testing.assert_array_equal(packs["drop"].images[0], pixels)
    assert packs["keep"].channels == 4
    assert (packs["auto"].images[0][~np.eye(9, dtype=bool)] == 255).all()
    content = json.loads((packs["drop"].folder / "pack.json").read_text())
    assert content["recipe"]["alpha"] == "drop"


def test_a_file_system_without_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw((8, 8, 3), (8, 8, 3))
    expected = np.array(pack_into(tmp_path / "p", Images(images)).images)

    class NoMap(mmap.mmap):
        def __new__(cls, *arguments: object, **named: object) -> "NoMap":
            raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mmap, "mmap", NoMap)
    packed = pack_into(tmp_path / "p", Images(images))
    assert packed.note == "found" and packed.unmapped is not None and "No such device" in packed.unmapped
    np.testing.assert_array_equal(packed.read(np.array([1, 0])), expected[[1, 0]])
    np.testing.assert_array_equal(packed.images, expected)
    np.save(tmp_path / "array.npy", expected)
    source = open_source(load_config(None, [f"data.source={tmp_path / 'array.npy'}"], preset="classic").data)
    np.testing.assert_array_equal(source.item(1), expected[1])
    (line,) = left_out_of(source).notes
    assert line.startswith(f"{tmp_path / 'array.npy'}: ") and "No such device" in line


@pytest.mark.parametrize("name", ["pack.json", "sizes.npy", "names.npy"])
def test_a_disk_that_does_not_give_the_pack_is_no_reason_to_pack_again(
    name: str, tmp_path: Path, failing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw((8, 8, 3), (8, 8, 3))
    pack_into(tmp_path / "p", Images(images))
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name in failing:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(io, "open", builtins.open)  # what `Path.open` calls
    failing.add(name)
    source = Images(images)
    with pytest.raises(DataError, match="errno 5"):
        pack_into(tmp_path / "p", source)
    failing.clear()
    assert pack_into(tmp_path / "p", source).note == "found" and source.was_read == []
