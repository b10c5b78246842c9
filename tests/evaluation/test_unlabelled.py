"""A whole description of a small run: its files, its words, what is kept, and what it refuses."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from byol.base.errors import ByolError, CheckpointError, ConfigError, DataError
from byol.encoder.encoder import Encoder, load
from byol.evaluation import unlabelled as unlabelled_file
from byol.evaluation.description import Description, Outlier
from byol.evaluation.metadata import ColumnScore
from byol.evaluation.unlabelled import describe
from runs import PX, make_run, write_images


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images in three folders and a copy of one of them."""
    folder = tmp_path_factory.mktemp("unlabelled")
    write_images(folder / "images", num=10)
    copy = (folder / "images" / "dark" / "004.png").read_bytes()
    (folder / "images" / "red" / "copy.png").write_bytes(copy)
    make_run(folder / "runs" / "one", folder / "images")
    return folder / "runs" / "one"


def test_a_whole_description(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    heard: list[tuple[int, int]] = []
    found = describe(run_dir, say=said.append, progress=lambda done, total: heard.append((done, total)))
    assert said == [] and heard == [(31, 31)]
    content = json.loads((run_dir / "measures.json").read_text())
    assert content.keys() == {
        "sha256",
        "format", "num_images", "num_copies", "num_measured", "done", "seconds", "encoders", "verdict",
        "neighbours", "prototypes", "outliers", "metadata",
    }  # fmt: skip
    assert [content[key] for key in ("format", "num_images", "num_copies", "num_measured", "done")] == [
        1, 31, 1, 31, 5,
    ]  # fmt: skip
    assert [one["features"] for one in content["encoders"]] == ["untrained", "byol online"]
    for one in content["encoders"]:
        assert one.keys() == {
            "features", "rank", "max_rank", "alignment", "uniformity", "retrieval", "retrieval_low95",
            "retrieval_high95",
        }  # fmt: skip
        assert 1 <= one["rank"] <= one["max_rank"] == 30 and 0 < one["alignment"] < 4
        assert 0 <= one["retrieval_low95"] <= one["retrieval"] <= one["retrieval_high95"] <= 1
    assert content["verdict"] == found.verdict and "than the untrained one" in found.verdict

    # The features of the encoder, by hand.
    encoder = load(run_dir)
    names = [f"{label}/{index:03d}.png" for label in ("dark", "light", "red") for index in range(10)]
    names.append("red/copy.png")
    features = encoder.embed(str(run_dir.parents[1] / "images")).astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    likeness[:, 30] = -np.inf  # the copy is nobody's neighbour
    assert len(content["neighbours"]) == 12
    for query in content["neighbours"]:
        assert query["name"] == names[query["row"]] and len(query["neighbours"]) == 8
        best = np.sort(likeness[query["row"]])[::-1][:8]
        assert [one["similarity"] for one in query["neighbours"]] == pytest.approx(best, abs=1e-3)
        for one in query["neighbours"]:
            assert one["name"] == names[one["row"]] and one["row"] not in (query["row"], 30)
    assert len(content["prototypes"]) == 30 and content["prototypes"][0]["size"] == 2  # the copied one
    assert content["prototypes"][0] == {"row": 4, "name": "dark/004.png", "size": 2}
    assert sum(one["size"] for one in content["prototypes"]) == 31
    assert len(content["outliers"]) == 20 and content["outliers"][0].keys() == {"row", "name", "distance"}
    distances = [one["distance"] for one in content["outliers"]]
    assert distances == sorted(distances, reverse=True)
    (folder,) = content["metadata"]
    assert folder.keys() == {
        "column", "num_values", "accuracy", "low95", "high95", "chance", "warning",
    }  # fmt: skip
    assert (folder["column"], folder["num_values"], folder["warning"]) == ("folder", 3, False)  # the classes
    assert folder["accuracy"] == 1.0

    with Image.open(run_dir / "neighbours.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == (9 * 66 - 2, 12 * 66 - 2)  # tiles of 64 px, gaps of 2
        images = Image.open(run_dir.parents[1] / "images" / content["neighbours"][2]["neighbours"][4]["name"])
        shown = np.asarray(sheet)[2 * 66 : 2 * 66 + 64 : 4, 5 * 66 : 5 * 66 + 64 : 4]
        np.testing.assert_array_equal(shown, np.asarray(images))
    with (run_dir / "prototypes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "images"]
    assert rows[1:] == [[one["name"], str(one["size"])] for one in content["prototypes"]]

    # The second time no encoder is asked, nothing is searched, and all is the same.
    monkeypatch.setattr(Encoder, "encode_views", None)
    monkeypatch.setattr(unlabelled_file, "find_neighbours", None)
    monkeypatch.setattr(unlabelled_file, "find_prototypes", None)
    assert replace(describe(run_dir), seconds=0.0) == replace(found, seconds=0.0)


def test_both_encoders_see_the_same_images_and_views(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    encode = Encoder.encode_views

    def record(self: Encoder, views: torch.Tensor) -> torch.Tensor:
        seen.setdefault(self.spec.done, []).append(views.clone())
        return encode(self, views)

    monkeypatch.setattr(Encoder, "encode_views", record)
    monkeypatch.setattr(unlabelled_file, "NUM_MEASURED", 12)
    write_images(tmp_path / "images", num=10)
    make_run(tmp_path / "run", tmp_path / "images")
    assert describe(tmp_path / "run").num_measured == 12
    untrained, trained = seen[0], seen[5]
    # The trained one is first asked for the features of all, those of the measured ones among them. Whole
    # images are followed by their mirror images.
    assert [len(views) for views in trained] == [30, 30, 12, 12]
    assert [len(views) for views in untrained] == [12, 12, 12, 12]
    assert torch.equal(trained[1], trained[0].flip(3))
    measured = unlabelled_file.choose_measured(np.arange(30), seed=0)
    whole = [views[measured] for views in trained[:2]]
    for one, other in zip(untrained, [*trained[2:], *whole], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_of_many_images_some_are_described(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabelled_file, "MOST_IMAGES", 7)
    monkeypatch.setattr(unlabelled_file, "NUM_PROTOTYPES", 3)
    found = describe(run_dir)
    assert (found.num_images, found.num_measured, len(found.prototypes)) == (7, 7, 3)
    assert {one.row for one in found.outliers} == {0, 5, 10, 15, 20, 25, 30}
    assert sum(one.size for one in found.prototypes) == 7 and len(found.neighbours) == 3
    assert all(len(query.neighbours) == 6 for query in found.neighbours)


def test_few_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=2, classes=("dark",))
    make_run(tmp_path / "run", tmp_path / "images")
    found = describe(tmp_path / "run")
    assert [len(query.neighbours) for query in found.neighbours] == [1, 1] and len(found.outliers) == 2
    with Image.open(tmp_path / "run" / "neighbours.png") as sheet:
        assert sheet.size == (2 * 66 - 2, 2 * 66 - 2)


def test_floating_point_images_are_shown_scaled(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(12, PX, PX)).astype(np.float32)
    np.save(tmp_path / "images.npy", values)
    make_run(tmp_path / "run", tmp_path / "images.npy", f"data_transforms.input_shape=[{PX},{PX},1]")
    assert describe(tmp_path / "run").metadata == ()
    with Image.open(tmp_path / "run" / "neighbours.png") as sheet:
        assert sheet.size == (9 * 66 - 2, 12 * 66 - 2) and np.asarray(sheet).std() > 20


# ---- Metadata


def write_columns(path: Path, names: list[str], **columns: list[object]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file", *columns), *zip(names, *columns.values(), strict=True)])


def test_metadata_warns_of_what_features_tell(run_dir: Path, tmp_path: Path) -> None:
    names = [f"{label}/{index:03d}.png" for label in ("dark", "light", "red") for index in range(10)]
    rng = np.random.default_rng(0)
    write_columns(
        tmp_path / "plates.csv",
        names,
        plate=["p1"] * 10 + ["p2"] * 20,
        label=["x"] * 10 + ["y"] * 20,
        well=rng.permutation(["a", "b"] * 15).tolist(),
        day=["monday"] * 30,
        note=[""] * 30,
        number=list(range(30)),
    )
    said: list[str] = []
    found = describe(run_dir, metadata=tmp_path / "plates.csv", say=said.append)
    by_name = {one.column: one for one in found.metadata}
    assert list(by_name) == ["folder", "plate", "label", "well"]
    assert {name for name, one in by_name.items() if one.warning} == {"plate"}
    assert by_name["plate"].accuracy == by_name["label"].accuracy == 1.0
    assert said == [
        "column 'day' has one value; left out",
        "column 'note' is empty; left out",
        "column 'number' has no two values of 5 images each; left out",
    ]
    assert "WARNING: the features predict 'plate'" in found.render()
    # With a list of labels folders are not what is looked for.
    found = describe(run_dir, overrides=[f"evaluation.labels={tmp_path / 'plates.csv'}"])
    assert [(one.column, one.warning) for one in found.metadata] == [("folder", True)]


def test_folders_that_are_the_given_labels_are_no_batch_effect(run_dir: Path, tmp_path: Path) -> None:
    """By the partition, whatever the labels are called; also where some images have none."""
    names = [f"{label}/{index:03d}.png" for label in ("dark", "light", "red") for index in range(10)]
    given = {"dark": "dead", "light": "alive", "red": "other"}
    labels: list[object] = [given[name.split("/")[0]] for name in names]
    write_columns(tmp_path / "labels.csv", names[3:], label=labels[3:])
    found = describe(run_dir, overrides=[f"evaluation.labels={tmp_path / 'labels.csv'}"])
    assert [(one.column, one.warning) for one in found.metadata] == [("folder", False)]
    # Labels of other images say nothing of these.
    write_columns(tmp_path / "labels.csv", ["elsewhere.png"], label=["x"])
    found = describe(run_dir, overrides=[f"evaluation.labels={tmp_path / 'labels.csv'}"])
    assert [(one.column, one.warning) for one in found.metadata] == [("folder", True)]


def test_folders_beside_other_labels_are_a_column_like_any(tmp_path: Path) -> None:
    """A list names the classes, the folders are plates: that features tell these is a warning."""
    write_images(tmp_path / "images", num=8)
    names = [f"images/{plate}/{index:03d}.png" for plate in ("dark", "light", "red") for index in range(8)]
    write_columns(tmp_path / "list.csv", names, label=["x", "y"] * 12)
    make_run(tmp_path / "run", tmp_path / "list.csv")
    (folder,) = describe(tmp_path / "run").metadata
    assert (folder.column, folder.num_values, folder.warning) == ("folder", 3, True)


# ---- Words


def make_score(column: str, *, warning: bool = False) -> ColumnScore:
    return ColumnScore(column, 4, 0.9, 0.85, 0.95, 0.25, warning)


def test_the_description_in_words(run_dir: Path) -> None:
    found = describe(run_dir)
    lines = found.render().splitlines()
    assert "on the 31 training images (1 exact duplicates)" in lines[0]
    assert lines[2].split() == [
        "features", "view-retrieval", "accuracy", "95", "%", "interval", "effective", "rank", "alignment",
        "uniformity",
    ]  # fmt: skip
    assert lines[4].startswith("untrained ") and lines[5].startswith("byol online ")
    assert "how often a view finds the other view of its image (by chance 1 in 31)" in " ".join(lines[7:9])
    start = lines.index("", 7) + 1
    verdict = lines[start : lines.index("", start)]
    assert " ".join(verdict) == found.verdict and max(map(len, lines)) <= 120
    assert "WARNING" not in found.render()
    first = found.outliers[0]
    assert lines[-1].startswith(
        f"most unusual images (mean cosine distance to the 10 nearest): {first.name} ({first.distance:.2f}), "
    )
    many = [make_score(f"c{number}", warning=number == 7) for number in range(9)]
    lines = replace(found, metadata=tuple(many)).render().splitlines()
    (row,) = (line for line in lines if line.startswith("c7 "))
    assert " ".join(row.split()) == "c7 4 90.0 % 85.0 to 95.0 25.0 % batch effect?"
    assert lines.index(row) < lines.index(next(line for line in lines if line.startswith("c0 ")))
    assert "and 3 more columns in measures.json" in lines
    assert len(lines) <= 30
    without: Description = replace(found, num_copies=0, metadata=(), outliers=(Outlier(0, "a.png", 0.125),))
    assert "duplicates" not in without.render() and without.render().endswith(": a.png (0.12)")


# ---- What it refuses


def check_refused(
    kind: type[ByolError], run: Path, *overrides: str, message: str, metadata: Path | None = None
) -> None:
    with pytest.raises(kind, match=message) as caught:
        describe(run, overrides=overrides, metadata=metadata)
    assert "\n" not in str(caught.value)


def spoil_weights(run: Path, value: float) -> None:
    weights = load_file(run / "encoder.safetensors")
    spoilt = {
        key: torch.full_like(one, value) if one.is_floating_point() else one for key, one in weights.items()
    }
    save_file(spoilt, run / "encoder.safetensors")


def test_an_encoder_of_nan_or_one_that_has_collapsed(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=3)
    make_run(tmp_path / "run", tmp_path / "images")
    spoil_weights(tmp_path / "run", float("nan"))
    message = r"dark/000\.png: the features of this image are not finite \(9 such images in all\)"
    check_refused(DataError, tmp_path / "run", message=message)
    spoil_weights(tmp_path / "run", 0.0)
    check_refused(DataError, tmp_path / "run", message="all 9 images have the same features: .* collapsed")
    assert not (tmp_path / "run" / "measures.json").exists()


def test_mistakes_are_one_line(run_dir: Path, tmp_path: Path) -> None:
    check_refused(CheckpointError, tmp_path / "none", message=r"none: holds no run \(no config\.yaml\)")
    message = r"evaluation cannot change these settings \(trainer\.seed: .* -> 5\); leave them out"
    check_refused(ConfigError, run_dir, "trainer.seed=5", message=message)
    missing = tmp_path / "missing.csv"
    check_refused(DataError, run_dir, message=r"missing\.csv: cannot be opened", metadata=missing)
    (tmp_path / "other.csv").write_text("file,plate\nelsewhere/z.png,1\n")
    message = "none of its 1 files is among the images"
    check_refused(DataError, run_dir, message=message, metadata=tmp_path / "other.csv")
