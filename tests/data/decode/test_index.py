"""Names: one block of bytes, read back exactly, sorted without an object each."""

import os
import random

import pytest

from byol.data.decode.index import Names


def test_names_are_one_block_and_any_bytes_survive() -> None:
    given = ["a b.png", "", 'quo"te.png', "new\nline.png", "mañana/日本.tif", os.fsdecode(b"caf\xe9.png")]
    names = Names.of(given)
    assert list(names) == given and names[-1] == given[-1] and list(names[1:3]) == given[1:3]
    assert names.blob.nbytes == sum(len(os.fsencode(name)) for name in given)
    with pytest.raises(IndexError):
        names[6]


def test_no_names() -> None:
    names = Names.of([])
    assert len(names) == 0 and list(names) == [] and names.sorted().tolist() == []


def test_sorted_by_bytes() -> None:
    draw = random.Random(0)
    given = [bytes(draw.choices(b"ab\x01\xff", k=draw.randrange(20))) for _ in range(500)]
    names = Names.of(given)
    assert [names.raw(int(place)) for place in names.sorted()] == sorted(given)
    assert Names.of([b"b", b"a", b"b", b"a"]).sorted().tolist() == [1, 3, 0, 2]
