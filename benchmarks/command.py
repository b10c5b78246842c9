"""What the benchmark commands have in common: their options, and where their results go."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def new_parser(doc: str | None, *, threads_help: str | None = None) -> argparse.ArgumentParser:
    """A parser of the options that every benchmark has; `doc` is the script's, its first line is shown."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help=threads_help)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "byol-benchmarks")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: the figures mean nothing")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """For an option that takes some of the known names, with commas between."""
    allowed = list(known)

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return names

    return parse


def save_result(result: dict[str, Any], table: str, stem: Path) -> None:
    """Write the result as JSON and its table as Markdown, and print the table."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
