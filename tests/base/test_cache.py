"""What is cached is found again, belongs to its values, and a damaged file is no obstacle."""

from pathlib import Path

import numpy as np
import pytest

from byol.base.cache import Arrays, cache_key, load_or_make
from byol.base.errors import CheckpointError


def test_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> Arrays:
        calls.append(1)
        return {"ranked": np.arange(6).reshape(2, 3), "chosen": np.array('{"C": 0.1}')}

    path = tmp_path / "features" / "key.npz"
    assert [load_or_make(path, make)[1], load_or_make(path, make)[1]] == [False, True] and len(calls) == 1
    np.testing.assert_array_equal(load_or_make(path, make)[0]["ranked"], [[0, 1, 2], [3, 4, 5]])
    for damaged in (b"", b"PK\x03\x04 not a zip", b"nothing"):
        path.write_bytes(damaged)
        made, known = load_or_make(path, make)
        assert not known and str(made["chosen"]) == '{"C": 0.1}'
    with pytest.raises(CheckpointError, match="cannot be written"):
        load_or_make(path / "below.npz", make)


def test_a_key_belongs_to_values_types_and_order() -> None:
    one = np.arange(4)
    keys = {
        cache_key(one),
        cache_key(one, one),
        cache_key(one.reshape(2, 2)),
        cache_key(one.astype(np.int32)),
        cache_key(one[::-1]),
        cache_key("1"),
        cache_key(1),
        cache_key(None),
        cache_key("a", "b"),
        cache_key("ab"),
    }
    assert len(keys) == 10 and cache_key(one[::2]) == cache_key(one[::2].copy())
