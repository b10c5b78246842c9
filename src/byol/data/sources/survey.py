"""Survey many images before or while they are packed: read their headers, or the pixels of some."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Integer, Real

from byol.base.errors import DataError, quote
from byol.data.decode.fitting import fit, select_channels, select_missing
from byol.data.decode.formats import Bits, Channels, ImageArray, Kind, LaidFile, Missing, bits_of_dtype
from byol.data.decode.image import load, peek
from byol.data.decode.index import Source, sample
from byol.data.decode.reading import Alpha, noting
from byol.data.sources.parallel import read_ahead
from byol.data.sources.upright import THUMBNAIL_PX, measure_upright

BLANK_STD = 0.01  # of the values, scaled to 0..1: an image with a lower std in every channel is blank
_VALUES = 256  # of each channel of an image, kept for the percentiles
_LOW, _HIGH = 0.1, 99.9  # percentiles


@dataclass(frozen=True)
class Survey:
    """Statistics of some or all images of a source; ignores images with other channels or bits than most."""

    num_images: int  # of the source
    num_looked_at: int
    num_bad: int  # of these: not readable
    channels: int  # the most common number, after data.channels
    bits: Bits  # the most common
    used_bits: int  # 12 for 12-bit data in 16-bit files; otherwise the same as bits
    is_grey: bool  # one channel, or three equal ones: grey saved as RGB
    sides: tuple[int, int, int, int]  # longest side, px: smallest, median, 95th percentile, largest
    one_size: bool  # all have the same height and width
    low: tuple[float, ...]  # of each channel: 0.1st percentile; `high`: 99.9th
    high: tuple[float, ...]
    blank: float  # fraction of images that are blank
    upright: float  # 0.5..1, see `upright.py`
    missing: float = 0.0  # fraction of values that were not measured, and are filled
    with_missing: float = 0.0  # fraction of images that have such values


def survey(
    source: Source, *, most: int, channels: Channels, num_workers: int, alpha: Alpha = "auto"
) -> Survey:
    """Read the pixels of at most `most` images, see `index.sample`.

    Raises:
        DataError: none of them is readable or has the channels that `channels` selects.
    """
    indices = sample(source, most)
    looks: list[_Look] = []
    first_bad: tuple[str, DataError] | None = None
    look = partial(_look_at, channels=channels, alpha=alpha)
    with closing(read_ahead(look, source, indices, num_workers=num_workers)) as found:
        for index, one in found:
            if isinstance(one, _Look):
                looks.append(one)
            elif first_bad is None:
                first_bad = source.names(index), one
    if not looks:
        assert first_bad is not None
        name, reason = first_bad
        raise DataError(
            f"{source.name}: none of the {len(indices)} images that byol looked at can be used; "
            f"the first is {quote(name)}: {reason}"
        )
    return _summarise(looks, num_images=len(source), num_bad=len(indices) - len(looks))


@dataclass(frozen=True, eq=False)
class ImageNumbers:
    """Statistics of one image. Range and std are those of the measured values."""

    height: int
    width: int
    bits: Bits
    has_equal_channels: bool
    smallest: Float32[np.ndarray, " channel"]
    largest: Float32[np.ndarray, " channel"]
    std: Float32[np.ndarray, " channel"]
    missing: float  # fraction of values that were not measured, and are filled

    @classmethod
    def of(cls, image: ImageArray, measured: list[Real[np.ndarray, " _n"]], missing: float) -> "ImageNumbers":
        """Compute from an image whose channels are selected; `measured` is the result of `take_measured`."""
        return ImageNumbers(
            height=image.shape[0],
            width=image.shape[1],
            bits=bits_of_dtype(image.dtype),
            has_equal_channels=bool((image == image[..., :1]).all()),
            smallest=np.array([plane.min() for plane in measured], np.float32),
            largest=np.array([plane.max() for plane in measured], np.float32),
            std=np.array([plane.std(dtype=np.float32) for plane in measured]),
            missing=missing,
        )

    @property
    def kind(self) -> tuple[int, Bits]:
        """Channels and bits."""
        return len(self.std), self.bits


@dataclass(frozen=True, eq=False)
class _Look(ImageNumbers):
    values: Float32[np.ndarray, "channel value"]
    thumbnail: Float32[np.ndarray, "side side channel"]


def _look_at(item: str | LaidFile | ImageArray, *, channels: Channels, alpha: Alpha) -> _Look:
    with noting(alpha):
        loaded = load(item)
    image = select_channels(loaded.pixels, channels)
    measured = take_measured(image, loaded.filled, channels=channels)
    return _Look(
        **vars(ImageNumbers.of(image, measured, loaded.missing)),
        values=np.stack([_thin(plane) for plane in measured]),
        thumbnail=fit(image, THUMBNAIL_PX).astype(np.float32),
    )


def take_measured(
    image: ImageArray, filled: Missing | None, *, channels: Channels
) -> list[Real[np.ndarray, " _n"]]:
    """Return the values of each channel that are not filled; `image` has only `channels`, `filled` all."""
    planes = list(np.ascontiguousarray(image.reshape(-1, image.shape[2]).T))  # contiguous: 5 times as fast
    if filled is None:
        return planes
    gaps = np.broadcast_to(select_missing(filled, channels), image.shape).reshape(-1, image.shape[2]).T
    # Grey computed from three channels may have no pixel where all three are measured.
    return [plane if gap.all() else plane[~gap] for plane, gap in zip(planes, gaps, strict=True)]


def _thin(plane: Real[np.ndarray, " n"]) -> Float32[np.ndarray, " few"]:
    return plane[np.linspace(0, plane.size - 1, _VALUES).astype(np.int64)].astype(np.float32)


def _summarise(looks: list[_Look], *, num_images: int, num_bad: int) -> Survey:
    num_looked_at = len(looks) + num_bad
    (channels, bits), _ = Counter(look.kind for look in looks).most_common(1)[0]
    looks = [look for look in looks if look.kind == (channels, bits)]
    values = np.concatenate([look.values for look in looks], axis=1)
    low, high = np.percentile(values, (_LOW, _HIGH), axis=1).astype(np.float32)
    span = np.maximum(high - low, 1e-6) if bits > 8 else np.full(channels, 255.0, np.float32)
    thumbnails = np.stack([(look.thumbnail - low) / span for look in looks])
    sides = np.array([max(look.height, look.width) for look in looks])
    largest = max(float(look.largest.max()) for look in looks)
    return Survey(
        num_images=num_images,
        num_looked_at=num_looked_at,
        num_bad=num_bad,
        channels=channels,
        bits=bits,
        used_bits=count_used_bits(bits, largest),
        is_grey=channels == 1 or (channels == 3 and all(look.has_equal_channels for look in looks)),
        sides=summarise_sides(sides),
        one_size=len({(look.height, look.width) for look in looks}) == 1,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        blank=float(np.mean([(look.std / span < BLANK_STD).all() for look in looks])),
        upright=measure_upright(thumbnails.mean(axis=3)),
        missing=float(np.mean([look.missing for look in looks])),
        with_missing=float(np.mean([look.missing > 0 for look in looks])),
    )


def count_used_bits(bits: int, largest: float) -> int:
    """Return the bits that values up to `largest` need: 12 for 12-bit data in 16-bit files."""
    return max(8, int(largest).bit_length()) if bits == 16 else bits


def describe_missing(missing: float, with_missing: float) -> str | None:
    """Describe the fractions of values and of images that are filled; None: nothing is filled."""
    if with_missing == 0.0:
        return None
    images = f"{100 * with_missing:.0f} % of the images"
    return (
        f"{100 * missing:.2g} % of all values, in {images}, are missing (NaN, fill values, padding or "
        "masked); byol replaces each by the median of its channel in its image"
    )


def summarise_sides(longest: Integer[np.ndarray, " n"]) -> tuple[int, int, int, int]:
    """Return the smallest, median, 95th percentile and largest of the longest sides of images, in px."""
    least, median, high, most = (int(np.percentile(longest, share)) for share in (0, 50, 95, 100))
    return least, median, high, most


def find_largest_side(source: Source, *, limit_px: int, most: int, num_workers: int) -> int:
    """Return the largest side of any readable image, in px, or `limit_px` if one reaches it.

    Reads the headers of at most `most` images, at equal distances, and stops at the first that reaches the
    limit, which is fast for sets of large images. 0: no image is readable.
    """
    largest = 0
    indices = range(0, len(source), -(-len(source) // most))
    with closing(read_ahead(peek, source, indices, num_workers=num_workers)) as kinds:
        for _, kind in kinds:
            if isinstance(kind, Kind):
                largest = max(largest, kind.longest_side)
            if largest >= limit_px:
                return limit_px
    return largest


def describe_mixture(source: Source, *, all_channels: bool, num_workers: int, alpha: Alpha = "auto") -> str:
    """Describe the kinds of images, how many of each there are, the first of the rarest kind, and what to do.

    Reads every header. `all_channels`: compare channels and bit depth, otherwise the bit depth only.
    """
    counts: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], int] = {}
    for index, kind in read_ahead(
        partial(peek, alpha=alpha), source, range(len(source)), num_workers=num_workers
    ):
        if isinstance(kind, Kind):
            key = (kind.channels if all_channels else 0, kind.bits)
            counts[key] += 1
            first.setdefault(key, index)
    rarest = min(counts, key=lambda key: counts[key])
    numbers, depths = {number for number, _ in counts}, {bits for _, bits in counts}
    kinds = []
    for (number, bits), count in counts.most_common():
        channels = f"{number} channel{'s' if number > 1 else ''}" if len(numbers) > 1 else ""
        kinds.append(
            f"{count} of " + " ".join(filter(None, (channels, f"{bits} bit" if len(depths) > 1 else "")))
        )
    if len(depths) > 1:
        advice = "convert the files of one kind, or name those of the other in a list (.txt)"
    elif numbers <= {1, 3}:
        advice = "set data.channels=rgb (grey three times) or data.channels=grey"
    else:
        advice = "choose some with data.channels=[0], or name the files of one kind in a list (.txt)"
    name = source.names(first[rarest])
    if len(numbers) > 1 and name.lower().endswith((".npy", ".npz")):
        advice = f"set the channel axis of the arrays with data.layout=hwc or data.layout=chw; or {advice}"
    return f"the images differ: {', '.join(kinds)} (the first of these is {quote(name)}); {advice}"
