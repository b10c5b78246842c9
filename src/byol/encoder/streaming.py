"""Compute features of any number of images and store them on disk in blocks: `byol embed`, `byol predict`.

Only the names take memory per image. After an interruption, the same command continues (`partial_rows`).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from pydantic_core import to_json

from byol.base.console import Count, Say, remark
from byol.base.errors import DataError
from byol.data.decode.index import Source
from byol.encoder.encoder import Encoder
from byol.encoder.finite import check_finite
from byol.encoder.partial_rows import PartialRows, PickedNames, StoredRows
from byol.encoder.remarks import Remarks

BATCH = 256  # images per block

Features = Float32[np.ndarray, "image feature"]
Rows = Float32[np.ndarray, "image value"]


@dataclass(frozen=True)
class Streamed:
    """One row for each image that could be used, in the order of the source, on disk."""

    names: PickedNames
    values: StoredRows
    num_bad: int  # images that could not be used
    num_outside: int  # images whose values lie outside the range of the training images


@contextmanager
def stream_rows(
    encoder: Encoder,
    images: Source,
    output: Path,
    *,
    skip_unreadable: bool,
    width: int,
    make_rows: Callable[[Features], Rows] = lambda features: features,
    recipe: Sequence[str] = (),
    progress: Count | None = None,
    tell: Say = remark,
) -> Iterator[Streamed]:
    """Compute rows of `width` values, which `make_rows` makes from the features of all images.

    They are stored in the folder `OUTPUT.partial`, which is deleted when the caller has written `output`.
    `recipe` is what else the rows depend on. `progress` is called with (images done, images in total). `tell`
    receives lines about images that are left out, changed or unlike the training images; a list of those left
    out is written.

    Raises:
        DataError: no image can be used, the disk fails, or the features are not finite.
        CheckpointError: the folder cannot be written.
    """
    folder = output.with_name(f"{output.name}.partial")
    with PartialRows(folder, recipe=_fingerprint(encoder, images, recipe), width=width) as rows:
        if rows.is_other:
            tell(f"{folder}: holds rows of other images or of another encoder; starting again")
        elif rows.num_before:
            tell(f"continuing from {folder}, after {rows.num_before:,} of {len(images):,} images")
        told = Remarks(skip_unreadable, encoder.spec.pixels, rows, tell)
        blocks = encoder.embed_source(
            images,
            first=rows.mark.done,
            batch_size=BATCH,
            on_bad=told.leave_out,
            on_outside=told.warn,
            on_read=told.note,
        )
        for block in blocks:
            check_finite(block.features, block.names.__getitem__, among="so far")
            rows.finish_block(
                block.places,
                make_rows(block.features),
                end=block.end,
                seen=told.seen,
            )
            if progress is not None:
                progress(block.end, len(images))
        told.say_all(output)
        num_bad = rows.mark.num_bad
        if rows.mark.num_rows:
            yield Streamed(rows.names(images), rows.values(), num_bad, told.seen.num_outside)
    rows.remove()
    if rows.mark.num_rows == 0:
        raise DataError(f"{images.name}: byol cannot use any of the {num_bad} images")


def _fingerprint(encoder: Encoder, images: Source, recipe: Sequence[str]) -> str:
    """Return a hash of everything that the rows depend on."""
    digest = hashlib.blake2b(images.fingerprint().encode(), digest_size=16)
    digest.update(to_json([asdict(encoder.spec), *recipe, BATCH]))
    for name, tensor in sorted(encoder.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
