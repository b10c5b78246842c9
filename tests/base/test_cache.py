"""What is cached is found again, belongs to its values, and a damaged file is no obstacle."""

from pathlib import Path

import numpy as np

from byol.base.cache import Arrays, cache_key, load_or_make, load_or_make_array


def test_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> Arrays:
        calls.append(1)
        return {"ranked": np.arange(6).reshape(2, 3), "chosen": np.array('{"C": 0.1}')}

    path = tmp_path / "features" / "key.npz"
    assert [load_or_make(path, make)[1], load_or_make(path, make)[1]] == [False, True] and len(calls) == 1
    np.testing.assert_array_equal(load_or_make(path, make)[0]["ranked"], [[0, 1, 2], [3, 4, 5]])
    assert load_or_make(path / "below.npz", make)[1] is False  # a place that cannot be written is no error


def test_any_damage_is_found(tmp_path: Path) -> None:
    path, whole = tmp_path / "key.npz", {"a": np.arange(6), "b": np.ones((2, 3))}
    load_or_make(path, lambda: whole)
    content = path.read_bytes()
    damaged = [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in range(len(content))]
    for wrong in (
        *damaged,
        *(content[:at] for at in range(0, len(content), 7)),
        content + b"x",
        b"PK\x03\x04",
    ):
        path.write_bytes(wrong)
        made, known = load_or_make(path, lambda: {"a": np.zeros(1)})
        assert not known and made["a"].shape == (1,)


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


def test_caches_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They had no checksum."""
    array = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "a.npz", ranked=array)
    np.save(tmp_path / "b.npy", array)
    arrays, known = load_or_make(tmp_path / "a.npz", dict)
    assert known and (arrays["ranked"] == array).all()
    np.testing.assert_array_equal(load_or_make_array(tmp_path / "b.npy", lambda: np.zeros(1)), array)


def test_one_array_is_an_npy_file_that_numpy_reads(tmp_path: Path) -> None:
    path, array = tmp_path / "a.npy", np.arange(7.0)
    np.testing.assert_array_equal(load_or_make_array(path, lambda: array), array)
    np.testing.assert_array_equal(np.load(path), array)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        assert load_or_make_array(path, lambda: np.zeros(1)).shape == (1,)
    for end in range(0, len(content), 5):
        path.write_bytes(content[:end])
        assert load_or_make_array(path, lambda: np.zeros(1)).shape == (1,)
