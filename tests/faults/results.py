"""What the suite has tried and seen, and the page it becomes."""

import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

_INTRODUCTION = """# Reliability

byol promises that nothing you do, and nothing the machine does, loses more than the steps since the last
checkpoint, leaves a half-written file that a later command trusts, or silently gives a different run.
`scripts/faults` puts the faults below into small runs on purpose and looks at what comes of it. In most rows
the same command is then given once more, without the fault. "Identical" means: the weights, the optimizer's
state, the metrics, the encoders and the packed images are bit for bit those of a run that nothing happened
to, and `metrics.jsonl` has each step once.

`{command}` has written this page up to "Hostile input", in {minutes:.0f} minutes on {cores} cores;
`--short` tries fewer moments of each fault, and `--smoke` a few of each kind in about a minute, which
`scripts/check` runs. The code is in `tests/faults/`; its `shim.py` puts errors and signals below Python's
open, write, rename, fsync, read and mmap.
"""


_KEPT = "## Hostile input"


@dataclass(frozen=True)
class Result:
    """One row: a fault, and what came of it."""

    group: str
    fault: str
    how: str  # it was injected
    promised: str
    tried: int
    ends: Counter[str] = field(default_factory=Counter)  # how the tries ended, in words
    problems: tuple[str, ...] = ()  # promises that were not kept

    def __add__(self, other: "Result") -> "Result":
        return replace(
            self,
            tried=self.tried + other.tried,
            ends=self.ends + other.ends,
            problems=(*self.problems, *other.problems),
        )

    @property
    def seen(self) -> str:
        """The outcomes, most frequent first; broken promises before all else."""
        ends = [f"{count} x {end}" if len(self.ends) > 1 else end for end, count in self.ends.most_common()]
        broken = f"**{len(self.problems)} broken promises**" if self.problems else ""
        return ", ".join(filter(None, (broken, *ends)))


Job = Callable[[], Result]


def merge(results: Sequence[Result]) -> list[Result]:
    """One row a fault, in the order of the first of each."""
    rows: dict[tuple[str, str], Result] = {}
    for result in results:
        key = result.group, result.fault
        rows[key] = rows[key] + result if key in rows else result
    return list(rows.values())


def render(rows: Sequence[Result], *, seconds: float, command: str) -> str:
    """The page, as Markdown."""
    tried, broken = sum(row.tried for row in rows), sum(len(row.problems) for row in rows)
    lines = [_INTRODUCTION.format(command=command, minutes=max(1, round(seconds / 60)), cores=os.cpu_count())]
    lines.append(
        f"Last run: {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}, CPU. {tried:,} faults tried, "
        f"{broken} promises broken.\n"
    )
    for group in dict.fromkeys(row.group for row in rows):
        lines += [
            f"## {group}\n",
            "| Fault | How injected | Tried | Promised | Seen |",
            "|---|---|---:|---|---|",
        ]
        for row in rows:
            if row.group == group:
                cells = (row.fault, row.how, f"{row.tried:,}", row.promised, row.seen)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def write(path: Path, rows: Sequence[Result], *, seconds: float, command: str) -> None:
    """Write the page; what stands in it from `_KEPT` on is written by hand and stays."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = before[before.index(_KEPT) :] if _KEPT in before else ""
    path.write_text(
        f"{render(rows, seconds=seconds, command=command)}\n{kept}".rstrip() + "\n", encoding="utf-8"
    )
