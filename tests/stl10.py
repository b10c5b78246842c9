"""A small STL-10 in the official binary files."""

from pathlib import Path

import numpy as np


def write_stl10(
    folder: Path, *, num: dict[str, int] | None = None, labels: tuple[int, ...] = (1, 10, 3)
) -> dict[str, np.ndarray]:
    """The official layout: channel after channel, column after column; labels from 1, repeated as given.

    `num` is the number of images of "train", "test" and "unlabeled", by default 3 of each. Returned are the
    images as (image, row, column, channel).
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {}
    for part, count in (num or dict.fromkeys(("train", "test", "unlabeled"), 3)).items():
        images[part] = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        images[part].transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            np.resize(np.array(labels, dtype=np.uint8), count).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    (folder / "fold_indices.txt").write_text("0 1 2\n")
    return images
