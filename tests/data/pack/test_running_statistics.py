"""What is counted while images are written is what would be counted afterwards."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from byol.data.pack import running_statistics as module
from byol.data.pack.partial import Mark, PartialPack, Recipe
from byol.data.pack.running_statistics import RunningStatistics
from byol.data.pack.statistics import count_values, find_extremes, summarise

RNG = np.random.default_rng(0)


def open_writer(folder: Path, *, num_images: int) -> PartialPack:
    recipe = Recipe("source", 6, None, None)
    return PartialPack(folder, Mark(recipe, 6, 0, 0, num_images, done=0, num_rows=0, num_bad=0, bad_bytes=0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("bad", [(), (0,), (4, 11)])
def test_statistics_and_checksum_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, channels: int, bad: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 500)
    images = RNG.integers(0, 250 if dtype is np.uint8 else 60_000, (12, 6, 6, channels)).astype(dtype)
    writer = open_writer(tmp_path / "p", num_images=12)
    with RunningStatistics(writer) as running:
        for index, image in enumerate(images):
            if index in bad:
                writer.append_bad("name", "reason")
            else:
                writer.append(index, image, height=6, width=6)
            writer.finish_image()
            running.follow(at_least=500)
        writer.complete_images()
        statistics, clipped, digest = running.finish()
    writer.close()
    good = np.delete(images, bad, axis=0)
    np.testing.assert_array_equal(np.load(tmp_path / "p" / "images.npy"), good)
    extremes = find_extremes(good) if dtype is np.float32 else None
    assert statistics == summarise(count_values(good), extremes)
    low, high = np.array(statistics.low, good.dtype), np.array(statistics.high, good.dtype)
    assert clipped == pytest.approx(((good < low) | (good > high)).mean())
    assert statistics.smallest == tuple(good.min((0, 1, 2)))
    assert statistics.largest == tuple(good.max((0, 1, 2)))
    assert digest == hashlib.blake2b((tmp_path / "p" / "images.npy").read_bytes(), digest_size=16).hexdigest()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_counts_of_8_bit_values(channels: int) -> None:
    images = RNG.integers(0, 256, (5, 7, 3, channels), dtype=np.uint8)
    expected = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(channels)]
    np.testing.assert_array_equal(count_values(images), expected)


def test_what_goes_wrong_in_the_thread_is_raised_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: np.ndarray, *, out: np.ndarray) -> np.ndarray:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "count_values", fail)
    writer = open_writer(tmp_path / "p", num_images=2)
    with RunningStatistics(writer) as running:
        for index in range(2):
            writer.append(index, np.zeros((6, 6, 1), dtype=np.uint8), height=6, width=6)
            writer.finish_image()
            running.follow(at_least=1)
        with pytest.raises(OSError, match="the disk is gone"):
            running.finish()
    writer.close()
