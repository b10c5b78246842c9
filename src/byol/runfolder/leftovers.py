"""What killed commands other than training have left in a run folder under temporary names."""

from pathlib import Path

from byol.base.files import remove_leftovers

_RESULTS = frozenset(
    {"eval.json", "measures.json", "prototypes.csv", "neighbours.png", "report.html", "map.npz", "card.md"}
)


def tidy(run_dir: Path) -> None:
    """Delete it. What another command is writing at the moment stays."""
    remove_leftovers(run_dir, of=_RESULTS.__contains__)
    remove_leftovers(run_dir / "features", of=lambda name: name.endswith((".npy", ".npz")))
