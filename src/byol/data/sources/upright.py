"""Measure whether images have an upright orientation: how well a classifier tells them from rotated copies.

A slanted scan, a light gradient or dirt on the lens also reveals rotated images, but says nothing about what
they show. So the mean image is subtracted, and mirrored images (left for right) are the control: traces of
the camera reveal mirrored images as well as rotated ones; gravity reveals only rotated ones. The accuracies
for rotated and mirrored images were 68 and 49 % (2,000 images of CIFAR-10), 80 and 93 % (1,900 plankton
images, line scan), 82 and 77 % (1,700 cells in flow). Light from directly above still counts as upright.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int64

THUMBNAIL_PX = 16  # side of the thumbnails
_FEWEST = 50  # images; with fewer the result is 0.5
_REPEATS = 2  # how often each image gets a random rotation or none
_HANDED = 0.1  # largest accuracy above 0.5 from traces of the camera, in brightness; letters give 0.3
_C = 1e-3  # of the logistic regression; with weaker regularisation it learns traces of the camera
_MIRRORED = 4  # in place of a number of quarter turns
_TURNS, _MIRRORS = (1, 2, 3), (_MIRRORED,)

_Thumbnails = Float32[np.ndarray, "image side side"]
_Features = Float64[np.ndarray, "image value"]


def measure_upright(thumbnails: _Thumbnails, *, seed: int = 0) -> float:
    """Return 0.5 if images have no upright orientation, up to 1 if each image shows it.

    `thumbnails` are grey, of `THUMBNAIL_PX`, in any unit. The result is 0.5 + the accuracy for rotated images
    - that for mirrored images, from brightness and edges. It is computed also from brightness alone, where at
    most 0.1 is subtracted, and the larger one counts: letters are upright but not mirror-symmetric.
    """
    if len(thumbnails) < _FEWEST:
        return 0.5
    own = thumbnails - thumbnails.mean(axis=0)  # the mean image shows the camera, or centred objects
    excess = []
    for describe, most in ((_describe_brightness, _HANDED), (_describe_all, 0.5)):
        turned, mirrored = (_tell(own, ways, describe, seed=seed) - 0.5 for ways in (_TURNS, _MIRRORS))
        excess.append(turned - min(max(mirrored, 0.0), most))
    return 0.5 + min(max(0.0, *excess), 0.5)


def _tell(
    thumbnails: _Thumbnails,
    ways: tuple[int, ...],
    describe: Callable[[_Thumbnails], _Features],
    *,
    seed: int,
) -> float:
    """Return the two-fold balanced accuracy of telling images from others, changed in one of `ways`."""
    from sklearn.linear_model import LogisticRegression  # 1 s
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    accuracies = []
    for _ in range(_REPEATS):
        order = rng.permutation(len(thumbnails))
        changed: Int64[np.ndarray, " image"] = np.arange(len(order)) % 2
        chosen = (rng.choice(ways, len(order)) * changed).tolist()
        values = describe(
            np.stack([_change(thumbnails[at], way) for at, way in zip(order, chosen, strict=True)])
        )
        halves = np.arange(len(order)) < len(order) // 2
        for train in (halves, ~halves):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=_C, max_iter=300))
            predicted = model.fit(values[train], changed[train]).predict(values[~train])
            accuracies.append(balanced_accuracy_score(changed[~train], predicted))
    return float(np.mean(accuracies))


def _change(thumbnail: Float32[np.ndarray, "side side"], way: int) -> Float32[np.ndarray, "side side"]:
    return thumbnail[:, ::-1] if way == _MIRRORED else np.rot90(thumbnail, way)


def _describe_brightness(thumbnails: _Thumbnails) -> _Features:
    """Return the means of 8 x 8 fields minus the mean of the image, and their squares."""
    values = _average(thumbnails.astype(np.float64)[:, None], 8)
    values -= values.mean(axis=1, keepdims=True)
    return np.concatenate([values, values**2], axis=1)


def _describe_all(thumbnails: _Thumbnails) -> _Features:
    """Return brightness, and the strength of edges in 4 x 4 fields for 8 directions from dark to bright."""
    padded = np.pad(thumbnails.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    direction = ((np.arctan2(down, right) + np.pi) / (2.0 * np.pi) * 8.0).astype(np.int64) % 8
    strength = np.hypot(right, down)
    edges = np.stack([np.where(direction == number, strength, 0.0) for number in range(8)], axis=1)
    return np.concatenate([_describe_brightness(thumbnails), _average(edges, 4)], axis=1)


def _average(maps: Float64[np.ndarray, "image map side side"], side: int) -> _Features:
    """Average each map to `side` x `side` fields, and join all maps of an image to one row."""
    num, number, px, _ = maps.shape
    parts = maps.reshape(num, number, side, px // side, side, px // side)
    averages: _Features = parts.mean(axis=(3, 5)).reshape(num, -1)
    return averages
