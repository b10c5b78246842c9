"""Values that are no measurement: found, counted and filled, and never part of the range."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile

from byol.base.errors import DataError
from byol.checking.doctor import look_at
from byol.config import load_config
from byol.data.decode.formats import Decoded
from byol.data.decode.image import decode, load, read_square
from byol.data.decode.missing import declared, find_missing
from byol.data.pack import packed as packed_module
from byol.data.pack import running_statistics
from byol.data.pack.packed import Packed
from byol.data.pack.packing import pack
from byol.data.pack.statistics import count_values, find_extremes, summarise
from byol.data.pack.value_range import describe_outside
from byol.data.sources.opening import open_source
from byol.data.sources.survey import survey
from byol.method.views import Pixels

RNG = np.random.default_rng(0)
BORDER = np.zeros((20, 30), dtype=bool)
BORDER[:4] = True


def tiff(array: np.ndarray, *, nodata: str | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    tags = [] if nodata is None else [(42113, 2, len(nodata) + 1, nodata, True)]
    tifffile.imwrite(stream, array, extratags=tags, metadata=None, **options)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def measured(dtype: str) -> np.ndarray:
    return RNG.integers(100, 250 if dtype == "u1" else 3000, BORDER.shape).astype(dtype)


def bordered(dtype: str, value: float) -> np.ndarray:
    array = measured(dtype)
    array[BORDER] = value
    return array


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        (npy(bordered("f4", np.nan)), True),
        (npy(bordered("f4", np.inf)), True),
        (npy(bordered("f8", 1e300)), True),
        (npy(bordered("f8", -1.7976931348623157e308)), True),
        (npy(bordered("f4", -3.4028234663852886e38)), True),
        (npy(bordered("f4", -9999)), True),
        (npy(bordered("i2", -32768)), True),
        (npy(bordered("i4", -(2**31))), True),
        (npy(bordered("u2", 65535)), True),
        (tiff(bordered("u2", 17), nodata="17"), True),
        (tiff(bordered("u2", 0), nodata="0"), True),
        (tiff(bordered("u1", 3), nodata="3"), True),
        (tiff(bordered("i4", -(2**31) + 1), nodata=str(-(2**31) + 1)), True),
        (tiff(bordered("f4", -1.5), nodata="-1.5"), True),
        (tiff(bordered("f4", np.nan), nodata="nan"), True),
        (tiff(bordered("u1", 3), nodata="-9999"), False),
        (npy(bordered("u2", 4000)), False),
        (npy(bordered("u1", 255)), False),
        (npy(bordered("f4", -7)), False),
    ],
)
def test_what_is_no_measurement_is_filled_with_the_median_of_the_rest(file: bytes, kept: bool) -> None:
    raw, loaded = decode(file), load(file)
    if not kept:
        assert loaded.missing == 0.0
        np.testing.assert_array_equal(loaded.pixels, raw)
        return
    assert loaded.missing == pytest.approx(BORDER.mean())
    rest = raw[~BORDER]
    np.testing.assert_array_equal(loaded.pixels[~BORDER], rest)
    assert set(loaded.pixels[BORDER].ravel().tolist()) == {float(np.sort(rest.ravel())[rest.size // 2])}
    square = read_square(file, px=10, channels=None)
    assert square.missing == loaded.missing
    assert rest.min() <= square.pixels.min() and square.pixels.max() <= rest.max()


def test_a_saturated_image_is_measured() -> None:
    """White that is reached by values below it, one stray pixel, and an image that is white alone."""
    ramp = np.linspace(1000, 65535, 600).reshape(20, 30, 1).astype("u2")
    ramp[:3] = 65535
    stray = measured("u2")[..., None]
    stray[0, 0] = 65535
    white = np.full((20, 30, 1), 65535, "u2")
    for image in (ramp, stray, white):
        assert find_missing(Decoded(image)) is None


@pytest.mark.parametrize("value", [np.nan, -9999.0, -3.4e38])
def test_an_image_without_any_measurement_is_refused(value: float) -> None:
    image = measured("f4")[..., None].repeat(2, axis=2)
    image[..., 1] = value
    with pytest.raises(DataError, match=r"no measured value in channel 1 .*leave it out"):
        load(image)


def test_a_colour_is_missing_where_all_its_channels_are() -> None:
    rgb = RNG.integers(1, 255, (20, 30, 3), dtype=np.uint8)
    rgb[BORDER] = 0
    rgb[10, :, 0] = 0  # a dark red
    found = declared(rgb, 0.0)
    np.testing.assert_array_equal(found[..., 0], BORDER)
    bands = rgb.astype("i2")
    bands[10, :, 0] = -5
    np.testing.assert_array_equal(declared(bands, -5.0)[..., 0], np.arange(20)[:, None].repeat(30, 1) == 10)


def test_the_mask_inside_a_tiff_is_filled_and_its_pixels_do_not_count() -> None:
    rgb = RNG.integers(1, 255, (20, 30, 3), dtype=np.uint8)
    rgb[BORDER] = 0
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        how = {"metadata": None, "compression": "deflate"}
        writer.write(rgb, photometric="rgb", **how)
        writer.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, **how)
        writer.write(~BORDER, photometric="mask", subfiletype=4, **how)
        writer.write(~BORDER[::2, ::2], photometric="mask", subfiletype=5, **how)
    np.testing.assert_array_equal(decode(stream.getvalue()), rgb)
    loaded = load(stream.getvalue())
    assert loaded.missing == pytest.approx(BORDER.mean()) and loaded.pixels.min() >= 1


@pytest.mark.parametrize("kind", ["folder", "stack"])
def test_they_do_not_set_the_range_of_a_set_and_their_share_is_known(kind: str, tmp_path: Path) -> None:
    stack = np.stack([bordered(">f4", np.nan if at % 2 else -9999) for at in range(8)])
    if kind == "stack":
        np.save(tmp_path / "set.npy", stack)
    else:
        (tmp_path / "set.npy").mkdir()
        for at, image in enumerate(stack):
            (tmp_path / "set.npy" / f"{at}.tif").write_bytes(tiff(image.astype("f4")))
    source = open_source(load_config(None, [f"data.source={tmp_path / 'set.npy'}"], preset="default").data)
    packed = pack(
        source, folder=tmp_path / "p", stored_px=16, view_px=8, channels=None, max_bad=0.0, num_workers=1
    )
    assert packed.num_bad == 0 and packed.pixels.low[0] >= 100 and packed.pixels.high[0] <= 3000
    found = survey(source, most=8, channels=None, num_workers=1)
    assert found.missing == pytest.approx(BORDER.mean()) and found.with_missing == 1.0
    assert found.low[0] >= 100
    for row in (0, 7):  # training's squares are those of the images that an encoder is given
        given = stack[row].astype("f4")[..., None]
        np.testing.assert_array_equal(read_square(given, px=16, channels=None).pixels, packed.images[row])


def pack_files(folder: Path, files: list[bytes], **options: object) -> Packed:
    (folder / "set").mkdir()
    for at, file in enumerate(files):
        (folder / "set" / f"{at:03d}.tif").write_bytes(file)
    source = open_source(load_config(None, [f"data.source={folder / 'set'}"], preset="default").data)
    given = {"stored_px": 16, "view_px": 8, "channels": None, "max_bad": 0.0, "num_workers": 1} | options
    return pack(source, folder=folder / "p", **given)  # type: ignore[arg-type]


HALF = np.zeros((16, 16), dtype=bool)
HALF[:, :6], HALF[:3] = True, True


def half_filled(dtype: str, value: float, *, every: int) -> tuple[list[bytes], list[np.ndarray]]:
    """Files of which each `every`-th holds `value` for no measurement, and the values that were measured."""
    files, rest = [], []
    for at in range(40):
        array = RNG.integers(100, 250 if dtype == "u1" else 30_000, (16, 16)).astype(dtype)
        where = HALF if at % every == 0 else np.zeros_like(HALF)
        array[where] = value
        files.append(tiff(array, nodata=str(value)))
        rest.append(array[~where])
    return files, rest


@pytest.mark.parametrize(("dtype", "value"), [("u1", 3), ("u2", 17), ("i2", -9999), ("f4", -1.5)])
@pytest.mark.parametrize("every", [1, 7, 60])
def test_statistics_are_those_of_the_measured_values_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, value: float, every: int
) -> None:
    monkeypatch.setattr(running_statistics, "CHUNK_BYTES", 3000)  # several chunks
    files, rest = half_filled(dtype, value, every=every)
    packed = pack_files(tmp_path, files)
    flat = np.concatenate(rest).astype("u1" if dtype == "u1" else "u2" if dtype == "u2" else "f4")
    values = flat.reshape(1, -1, 1, 1)
    extremes = find_extremes(values) if flat.dtype == np.float32 else None
    assert vars(packed.pixels) == vars(summarise(count_values(values), extremes))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == sorted(packed_module.FILES)


def test_statistics_are_the_same_if_packing_was_stopped_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = half_filled("f4", -1.5, every=3)
    (tmp_path / "a").mkdir()
    whole = pack_files(tmp_path / "a", files)

    def stop(done: int, total: int) -> None:
        if done == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_files(tmp_path, files, progress=stop)
    source = open_source(load_config(None, [f"data.source={tmp_path / 'set'}"], preset="default").data)
    was_read: list[int] = []
    item = source.item
    monkeypatch.setattr(type(source), "item", lambda _, index: was_read.append(index) or item(index))
    again = pack(
        source, folder=tmp_path / "p", stored_px=16, view_px=8, channels=None, max_bad=0.0, num_workers=1
    )
    assert again.pixels == whole.pixels and min(was_read) >= 20


@pytest.mark.parametrize("shape", [(40, 40), (33, 20)])
def test_a_pixel_counts_if_most_of_what_it_is_made_from_was_measured(shape: tuple[int, int]) -> None:
    array = RNG.integers(100, 3000, shape).astype("f4")
    array[: shape[0] // 2] = -9999
    square = read_square(npy(array), px=10, channels=None)
    assert square.filled is not None
    np.testing.assert_array_equal(square.filled[:, :, 0].all(axis=1), np.arange(10) < 5)
    canvas = read_square(npy(array), px=50, channels=None, geometry="scale")
    top, left = (50 - shape[0]) // 2, (50 - shape[1]) // 2
    placed = canvas.filled[top : top + shape[0], left : left + shape[1], 0]
    np.testing.assert_array_equal(placed, array == -9999)


def test_chosen_channels_keep_their_own_gaps() -> None:
    bands = RNG.integers(100, 3000, (12, 12, 5)).astype("f4")
    bands[:6, :, 1], bands[6:, :, 4] = -9999, -9999
    square = read_square(npy(bands), px=12, channels=[4, 0, 1])
    np.testing.assert_array_equal(square.filled, bands[..., [4, 0, 1]] == -9999)
    colours = read_square(npy(bands[..., [0, 1, 2]]), px=12, channels="grey")
    np.testing.assert_array_equal(colours.filled[..., 0], bands[..., 1] == -9999)


def test_transparent_pixels_of_deep_images_count_only_where_they_are_kept() -> None:
    rgba = RNG.integers(100, 60_000, (12, 12, 4)).astype("u2")
    rgba[..., 3] = 65535
    rgba[:5, :, 3] = 0
    file = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    for alpha, gaps in (("auto", True), ("mask", True), ("drop", False), ("keep", False)):
        square = read_square(file, px=12, channels=None, alpha=alpha)
        if gaps:
            np.testing.assert_array_equal(square.filled[..., 0], rgba[..., 3] == 0)
        else:
            assert square.filled is None


def test_checks_and_range_warnings_leave_filled_values_out() -> None:
    array = RNG.integers(100, 200, (20, 20)).astype("f4")
    array[:12] = -9999
    array[12:16], array[16:18] = 20.0, 150.0  # 4 of 8 measured rows are below the training's black
    array[18:] = 20.0
    pixels = Pixels((100.0,), (200.0,), (0.5,), (0.2,), (15.0,), (200.0,))
    square = read_square(npy(array), px=20, channels=None)
    assert "most values are clipped" in (describe_outside(square.pixels, pixels, square.filled) or "")
    look = look_at(array[..., None], channels=None)
    assert look.std[0] == pytest.approx(array[12:].std(), rel=1e-6)
