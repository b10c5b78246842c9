"""JSON files that somebody edits by hand: a checksum goes with the edit."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from byol.base.records import KEY


def edit_json(
    path: Path,
    change: Callable[[dict[str, Any]], object] = dict,
    *,
    remove: Sequence[str] = (),
    **fields: object,
) -> None:
    """Write a JSON file anew, without its checksum: with `change`, and with these fields."""
    content = json.loads(path.read_text())
    for key in (KEY, *remove):
        content.pop(key, None)
    change(content)
    path.write_text(json.dumps(content | fields))
