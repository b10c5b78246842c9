"""Duplicates: exact by values, near by hash and thumbnail; what is alike is found, what differs is not."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from byol.checking import duplicates
from byol.checking.duplicates import THUMBNAIL_PX, Alike, find_alike, find_leaks, hash_thumbnail, quantise
from byol.data.decode.fitting import fit
from byol.data.decode.image import decode


def draw(seed: int, *, height: int = 64, width: int = 80) -> np.ndarray:
    """A picture with something in it: smooth noise, uint8, one channel."""
    coarse = np.random.default_rng(seed).normal(128.0, 40.0, (8, 10, 1)).clip(10, 240)
    return np.asarray(
        Image.fromarray(coarse[..., 0].astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    )[..., None]


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image[..., 0]).save(file, "JPEG", quality=quality)
    return decode(file.getvalue())


def compare(*images: np.ndarray, may_be_near: bool = True) -> Alike:
    thumbnails = [fit(image, THUMBNAIL_PX)[..., 0].astype(np.float32) for image in images]
    return find_alike(
        np.array([hash(image.tobytes()) & (2**63 - 1) for image in images], dtype=np.uint64),
        np.array([hash_thumbnail(thumbnail) for thumbnail in thumbnails], dtype=np.uint64),
        thumbnails=np.stack([quantise(thumbnail) for thumbnail in thumbnails]),
        aspects=np.array([image.shape[1] / image.shape[0] for image in images], dtype=np.float32),
        may_be_near=np.full(len(images), may_be_near),
    )


@pytest.mark.parametrize("seed", range(5))
def test_compression_light_and_size_do_not_hide_a_copy(seed: int) -> None:
    image = draw(seed)
    smaller = np.asarray(Image.fromarray(image[..., 0]).resize((60, 48)))
    found = compare(
        image, draw(100 + seed), compress(image, 60), np.minimum(image, 254) + 1, smaller[..., None], image
    )
    assert found.same_as.tolist() == [-1, -1, 0, 0, 0, 0]
    assert found.is_exact.tolist() == [False, False, False, False, False, True]
    assert (found.num_exact, found.num_near, found.is_complete) == (1, 3, True)


def test_another_aspect_is_another_image_and_what_shows_nothing_has_no_near_copies() -> None:
    image = draw(0)
    stretched = np.asarray(Image.fromarray(image[..., 0]).resize((160, 64)))[..., None]
    assert compare(image, stretched).num_near == 0
    assert compare(image, compress(image, 60), may_be_near=False).num_near == 0


def test_different_images_are_not_alike() -> None:
    assert compare(*(draw(seed) for seed in range(300))).same_as.max() == -1


def test_close_hashes_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 200, dtype=np.uint64)
    flipped = hashes.copy()
    for bits in range(5):  # of each fifth so many bits are flipped
        for row in range(bits, 200, 5):
            for bit in rng.choice(64, bits, replace=False):
                flipped[row] ^= np.uint64(1) << np.uint64(bit)
    both = np.concatenate([hashes, flipped])
    earlier, later, is_complete = duplicates.find_close(both)
    distances = np.bitwise_count(both[:, None] ^ both)
    expected = np.argwhere(np.triu(distances <= 3, k=1))
    assert is_complete and np.array_equal(np.stack([earlier, later], axis=1), expected)
    assert len(expected) == 160


def test_many_that_share_a_group_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 10)
    hashes = np.random.default_rng(0).integers(0, 2**20, 100, dtype=np.uint64)  # the upper bits are equal
    _, _, is_complete = duplicates.find_close(hashes)
    assert not is_complete


def test_leaks() -> None:
    train, new = draw(0), draw(1)
    near = compress(train, 60)
    alike = compare(train, draw(2), near, near, train, new, new)  # the first two are for training
    leaks = find_leaks(alike, 2)
    assert leaks.same_as.tolist() == [0, 0, 0, -1, -1]
    assert leaks.is_exact.tolist() == [False, False, True, False, False]
