"""The metadata of a model card as the Hugging Face Hub reads it: YAML between two lines of `---`."""

from typing import Any

import yaml

from byol.reporting.run_summary import Accuracy, RunSummary

_TAGS = ("byol", "self-supervised-learning", "image-feature-extraction")
_CLASSIFIERS = {
    "knn": "k-nearest neighbours",
    "whitened knn": "k-nearest neighbours (whitened)",
    "sgd": "a linear classifier",
}


def write_metadata(facts: RunSummary | None, *, library: str | None) -> str:
    """Return the metadata of a card, for a run or for an encoder whose run is unknown (None).

    `library` is the library that loads the weights, as the Hub names it. No licence is named, because the
    owner of the weights chooses it. Accuracies are listed if these weights were evaluated.
    """
    fields: dict[str, Any] = {} if library is None else {"library_name": library}
    fields |= {"pipeline_tag": "image-feature-extraction", "tags": list(_TAGS)}
    if facts is not None and facts.table is not None and facts.outdated_table is None:
        rows = [row for row in facts.table.rows if row.features == "byol online"]
        if rows:
            fields |= {"metrics": ["accuracy"], "model-index": [_list_results(facts, rows)]}
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{text}---\n"


def _list_results(facts: RunSummary, rows: list[Accuracy]) -> dict[str, Any]:
    """Return the entry of `model-index`."""
    metrics = [
        {
            "type": "accuracy",
            "value": round(row.top1, 4),
            "name": f"top-1 of {_CLASSIFIERS.get(row.classifier, row.classifier)} on frozen features",
        }
        for row in rows
    ]
    assert facts.table is not None
    dataset = {"name": str(facts.table.fields["split"]), "type": facts.data_name}
    task = {"type": "image-classification", "name": "Image classification on frozen features"}
    return {"name": facts.name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
