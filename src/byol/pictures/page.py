"""One HTML file that needs nothing else: pictures inside, light or dark as the system, no network."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from byol.base.errors import printable

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1d1d1f; --page: #ffffff; --line: #d0d0d5; --quiet: #666670;
  --bad: #b00020; --warn: #8a5a00; --good: #1b7a3a; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e6e6ea; --page: #18181b; --line: #3f3f46;
  --quiet: #a0a0a8; --bad: #ff7b86; --warn: #f0b54a; --good: #6fd08c; }} }}
body {{ margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }}
img {{ max-width: 100%; }}
.quiet {{ color: var(--quiet); }} .bad {{ color: var(--bad); }} .warn {{ color: var(--warn); }}
.good {{ color: var(--good); }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def make_page(title: str, parts: Iterable[str]) -> bytes:
    """The file; `parts` are made by the functions below, which escape what they are given."""
    body = "\n".join([f"<h1>{_text(title)}</h1>", *parts])
    return _PAGE.format(title=_text(title), body=body).encode()


def heading(text: str) -> str:
    """Of a section."""
    return f"<h2>{_text(text)}</h2>"


def paragraph(text: str, *, kind: str = "") -> str:
    """`kind` "good", "warn", "bad" and "quiet" have their colours."""
    return f'<p class="{kind}">{_text(text)}</p>' if kind else f"<p>{_text(text)}</p>"


def items(lines: Iterable[str], *, kind: str = "") -> str:
    """A list, each line with a bullet."""
    return "\n".join(["<ul>", *(f'<li class="{kind}">{_text(line)}</li>' for line in lines), "</ul>"])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells of text under their headings."""
    cells = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>\n{cells}\n</table>"


def picture(png: bytes, *, title: str) -> str:
    """The bytes of a PNG, inside the page."""
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{_text(title)}">'


def _text(text: str) -> str:
    return escape(printable(text))
