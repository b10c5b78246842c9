"""Check that features are finite numbers."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from byol.base.errors import DataError


def check_finite(
    features: Float[np.ndarray, "image feature"], name_of: Callable[[int], str], *, among: str = "in all"
) -> None:
    """Refuse features that are not all finite; `name_of` returns the name of an image from its row.

    Raises:
        DataError: names the first such image and their number; `among` says in which set they were counted.
    """
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{name_of(int(np.argmin(finite)))}: the features of this image are not finite "
            f"({int((~finite).sum())} such images {among}) because the training of the encoder diverged; "
            "train again with a lower optimizer.params.lr"
        )
