import pytest

from byol.base.text_table import wrap


@pytest.mark.parametrize("before", range(105, 120))
def test_a_number_stays_with_its_percent_sign(before: int) -> None:
    sentence = f"{'x' * before} 79.2 % of all"
    lines = wrap(sentence, "next")
    assert any("79.2 %" in line for line in lines) and lines[-1] == "next"
    assert " ".join(lines[:-1]) == sentence
