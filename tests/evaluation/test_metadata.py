"""A column that features tell is a warning, one that they do not know is not, and some cannot be judged."""

import numpy as np
import pytest

from byol.evaluation import metadata as metadata_file
from byol.evaluation.metadata import ColumnScore, find_unusable, folders_of, judge_column
from byol.metrics.probes import standardise


def make_column(num: int, *, values: int, told: float, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Features, of which each value moves the mean by about `told` standard deviations; and the values."""
    rng = np.random.default_rng(0)
    column = np.arange(num) % values
    centres = told * rng.normal(size=(values, dim))
    return (centres[column] + rng.normal(size=(num, dim))).astype(np.float32), column.astype(np.int64)


def judge(features: np.ndarray, values: np.ndarray, *, is_label: bool = False) -> ColumnScore:  # type: ignore[type-arg]
    return judge_column(features, values, name="plate", is_label=is_label, seed=0)


def test_a_column_that_features_tell_is_a_warning() -> None:
    features, values = make_column(300, values=3, told=5.0)
    found = judge(features, values)
    assert (found.column, found.num_values, found.chance) == ("plate", 3, pytest.approx(1 / 3))
    assert found.accuracy == 1.0 and 0.98 < found.low95 < 1.0 and found.warning is True
    assert judge(features, values) == found


def test_a_random_column_is_near_chance_and_no_warning() -> None:
    features, values = make_column(600, values=4, told=0.0)
    found = judge(features, values)
    assert found.accuracy == pytest.approx(0.25, abs=0.06)
    assert found.low95 < 0.25 < found.high95 and found.warning is False


def test_the_label_never_warns() -> None:
    features, values = make_column(300, values=3, told=5.0)
    found = judge(features, values, is_label=True)
    assert found.warning is False and found.accuracy == 1.0


def test_a_rare_value_counts_as_much_as_a_common_one() -> None:
    features, _ = make_column(1000, values=2, told=0.0)
    values = (np.arange(1000) >= 970).astype(np.int64)  # always saying 0 is right 97 % of the time
    found = judge(features, values)
    assert found.chance == 0.5 and 0.3 < found.accuracy < 0.7 and not found.warning


def test_unknown_and_rare_values_are_left_out() -> None:
    features, values = make_column(100, values=2, told=5.0)
    values[:10] = -1
    values[10:14] = 2  # four images: not one for each fold
    found = judge(features, values)
    assert (found.num_values, found.chance, found.accuracy) == (2, 0.5, 1.0)


@pytest.mark.parametrize("constant", [False, True])
def test_more_features_than_images_and_features_that_never_vary(constant: bool) -> None:
    features, values = make_column(30, values=2, told=3.0, dim=200)
    if constant:
        features[:, 1:] = 7.0
        features[:, 0] = 10.0 * values
    assert judge(features, values).accuracy == 1.0


def test_many_images_are_judged_by_some_of_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(metadata_file, "NUM_ROWS", 60)

    def count(fit: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        seen.append(len(fit) + len(asked))
        return standardise(fit, asked)

    monkeypatch.setattr(metadata_file, "standardise", count)
    features, values = make_column(300, values=3, told=5.0)
    values[values == 2] = np.where(np.arange(100) < 12, 2, -1)  # 12 images
    assert judge(features, values).accuracy == 1.0
    assert seen == [20 + 20 + 12] * 5


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([-1, -1, -1], "is empty"),
        ([-1, 0, 0], "has one value"),
        ([0, 1, 2] * 4, "has no two values of 5 images each"),
        ([0] * 9 + [1] * 4, "has no two values of 5 images each"),
        ([number for number in range(1001) for _ in range(5)], "has 1001 values, more than 1000"),
        ([0] * 5 + [1] * 5 + [2], None),
    ],
)
def test_columns_that_cannot_be_judged(values: list[int], problem: str | None) -> None:
    assert find_unusable(np.array(values)) == problem


def test_folders_are_a_column_if_there_are_several() -> None:
    assert folders_of(["a.png", "b.png"]) is None and folders_of(["x/a.png", "x/b.png"]) is None
    found = folders_of(["x/a.png", "b.png", "y/z/c.png", "x/d.png"])
    assert found is not None
    numbers, names = found
    assert names == (".", "x", "y/z") and numbers.tolist() == [1, 0, 2, 1]
