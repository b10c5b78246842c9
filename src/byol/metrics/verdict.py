"""Does BYOL help? Compare its online encoder, per classifier, with what needs no training of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from byol.base.text_table import join_words, percent

ONLINE, BASELINES = "byol online", ("untrained", "pixels", "patches")


@runtime_checkable
class Judged(Protocol):
    """The fields of a table row that the verdict needs; accuracies are fractions, 0..1."""

    @property
    def features(self) -> str: ...
    @property
    def classifier(self) -> str: ...
    @property
    def top1(self) -> float: ...
    @property
    def low95(self) -> float: ...
    @property
    def high95(self) -> float: ...


@dataclass(frozen=True)
class Verdict:
    """The verdict by one classifier."""

    kind: Literal["good", "warn", "bad"]  # BYOL helps; is ahead, but not certainly; is not ahead
    sentence: str
    classifier: str
    online: Judged
    baseline: Judged  # the best one


def judge(rows: Sequence[Judged]) -> tuple[Verdict, ...]:
    """Return a verdict for each classifier with rows for the online encoder and a baseline, in row order."""
    classifiers = dict.fromkeys(row.classifier for row in rows)
    found = (_judge([row for row in rows if row.classifier == name]) for name in classifiers)
    return tuple(verdict for verdict in found if verdict is not None)


def show_classifier(name: str) -> str:
    """Return the classifier's name as people write it."""
    return name.replace("knn", "kNN")


def _judge(rows: Sequence[Judged]) -> Verdict | None:
    by_features = {row.features: row for row in rows}
    byol, baselines = (
        by_features.get(ONLINE),
        [by_features[name] for name in BASELINES if name in by_features],
    )
    if byol is None or not baselines:
        return None
    best = max(baselines, key=lambda row: row.top1)
    overlapping = [row.features for row in baselines if row.high95 >= byol.low95]
    kind: Literal["good", "warn", "bad"]
    if byol.high95 < best.low95:
        kind, start = "bad", "BYOL does not help here"
        end = f"; the interval of BYOL lies below that of {best.features}"
    elif byol.top1 <= best.top1:
        kind, start = "bad", "BYOL is not better than the best baseline"
        end = f"; the intervals of BYOL and {best.features} overlap"
    elif overlapping:
        kind, start = "warn", "BYOL is ahead, but the difference is not certain"
        end = f"; the intervals of BYOL and {join_words(overlapping)} overlap"
    else:
        kind, start, end = "good", "BYOL helps", "; the intervals do not overlap"
    against = join_words([f"{row.features} {percent(row.top1)}" for row in baselines])
    figures = f"with {show_classifier(byol.classifier)} {percent(byol.top1)} against {against}"
    above = [row for row in rows if row.features.startswith("weights ") and row.top1 > byol.top1]
    others = "".join(f"; {row.features} reach {percent(row.top1)}, more than BYOL" for row in above)
    return Verdict(kind, f"{start}: {figures}{end}{others}.", byol.classifier, byol, best)
