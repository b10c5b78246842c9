"""HTML pages that need nothing else, made from templates; pictures are in the page, as addresses."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from byol.base.errors import printable


def render_page(template: Path, content: dict[str, Any]) -> bytes:
    """The page. Text is escaped and shown on one line; control characters and foreign bytes are written out.

    In the template `include_raw(NAME)` is a file beside it, as it is.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["include_raw"] = lambda name: Markup(
        template.with_name(name).read_text(encoding="utf-8")
    )
    return environment.get_template(template.name).render(content).encode()


def to_address(content: bytes, kind: str) -> str:
    """Bytes as the address of an <img>; `kind` is "png" or "webp"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
