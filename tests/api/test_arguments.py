"""From arguments to a configuration and a folder: what no configuration can hold is refused in one line."""

import pytest

import byol

NO_UTF_8 = b"im\xe4ges".decode("utf-8", "surrogateescape")


def test_a_source_whose_name_is_not_utf_8_is_refused_with_the_next_step() -> None:
    with pytest.raises(byol.ConfigError, match=r"data\.source.*UTF-8; rename the file or folder"):
        byol.train(NO_UTF_8)


def test_an_output_whose_name_is_not_utf_8_is_refused_before_the_training() -> None:
    """TensorBoard cannot write there, which ended in a traceback."""
    with pytest.raises(byol.ConfigError, match=r"im\\xe4ges: .*not UTF-8; choose another"):
        byol.train("motifs", output=NO_UTF_8)
    with pytest.raises(byol.ConfigError, match="not UTF-8"):
        byol.check("motifs", output=NO_UTF_8)
