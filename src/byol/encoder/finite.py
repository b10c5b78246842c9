"""Features are finite numbers, or they are of no use to anybody."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from byol.base.errors import DataError


def check_finite(
    features: Float[np.ndarray, "image feature"], name_of: Callable[[int], str], *, among: str = "in all"
) -> None:
    """Refuse features of which one is not a finite number; `name_of` an image's place is its name.

    Raises:
        DataError: names the first such image, and how many there are; `among` says of which.
    """
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{name_of(int(np.argmin(finite)))}: the features of this image are not finite "
            f"({int((~finite).sum())} such images {among}) because the training of the encoder diverged; "
            "train again with a lower optimizer.params.lr"
        )
