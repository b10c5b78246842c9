"""Render self-contained HTML pages from templates; pictures are embedded as data addresses."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from byol.base.errors import printable


def render_page(template: Path, content: dict[str, Any]) -> bytes:
    """Render a page. Text is escaped and on one line; so are control characters and bytes that are not UTF-8.

    In the template, `include_raw(NAME)` inserts a file beside it without changes.
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
    """Return bytes as a data address for an <img>; `kind` is "png" or "webp"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
