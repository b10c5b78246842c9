"""A whole evaluation on a small run, its file, its words, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from byol.base.errors import ByolError, CheckpointError, ConfigError, DataError
from byol.data.pack.packed import Packed
from byol.encoder.encoder import Encoder
from byol.evaluation import features as features_file
from byol.evaluation import low_shot as low_shot_file
from byol.evaluation import table as table_file
from byol.evaluation.labelled import SEEN
from byol.evaluation.low_shot import LowShot
from byol.evaluation.rows import Candidate, Predicted, Row, predict
from byol.evaluation.splits import Split, Splits
from byol.evaluation.table import Confusion, Table, check_labels, evaluate
from byol.metrics import probes
from byol.metrics.folds import Groups, make_folds
from byol.runfolder.settings import read_config
from runs import PX, make_run, write_images


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    write_images(folder / "images", num=10)
    make_run(folder / "runs" / "one", folder / "images")
    return folder / "runs" / "one"


def test_a_whole_evaluation(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    heard: list[tuple[int, int]] = []
    table = evaluate(run_dir, say=said.append, progress=lambda done, total: heard.append((done, total)))
    assert [(row.features, row.transform, row.classifier) for row in table.rows] == [
        (features, transform, classifier)
        for features, transform in (
            ("pixels", "pca-256"),
            ("patches", "k-means"),
            ("untrained", "none"),
            ("byol online", "none"),
            ("byol target", "none"),
        )
        for classifier in ("logistic regression", "knn", "whitened knn")
    ]
    assert (table.num_train, table.num_test, table.num_classes, table.done) == (24, 6, 3, 5)
    by_name = {(row.features, row.classifier): row for row in table.rows}
    pixels = by_name["pixels", "logistic regression"]
    assert pixels.top1 == 1.0 and pixels.dimensions == 24  # colours are easy; no more components than images
    assert by_name["byol online", "knn"].dimensions == 96
    # This run's target is a copy of online, so that their rows agree.
    for classifier in ("logistic regression", "knn", "whitened knn"):
        online, target = by_name["byol online", classifier], by_name["byol target", classifier]
        assert replace(online, features="", seconds=0.0) == replace(target, features="", seconds=0.0)
    assert len(said) == 6 and said[0].startswith("pixels: logistic regression 100.0 %, kNN ")
    assert said[1].startswith("patches: logistic regression ")
    assert said[5].startswith("3 of 15 rows")  # those of target
    assert heard == [(24, 24), (6, 6)] * 2  # untrained and online; target has the weights of online

    # The second time no encoder is asked, and the numbers are the same.
    monkeypatch.setattr(Encoder, "encode", None)
    # Nor is a classifier fitted.
    for classifier in ("knn", "logistic_regression"):
        monkeypatch.setattr(probes, classifier, None)
    monkeypatch.setattr(low_shot_file, "fit_logistic", None)
    del said[:]
    again = evaluate(run_dir, say=said.append)
    assert said[-1].startswith("15 of 15 rows") and str(run_dir / "features") in said[-1]
    assert again.rows == table.rows
    assert again.low_shot == table.low_shot and again.confusion == table.confusion

    content = json.loads((run_dir / "eval.json").read_text())
    assert (
        content["format"] == 2
        and content["split"] == "images: every fifth image of each class held out for testing"
    )
    assert content.keys() == {
        "sha256",
        "format", "split", "protocol", "settings", "num_train", "num_test", "num_classes", "class_names",
        "num_unlabelled", "done", "seconds", "rows", "low_shot", "confusion", "seen",
    }  # fmt: skip
    assert content["settings"] == read_config(run_dir, []).evaluation.model_dump()
    assert content["rows"][1].keys() == {
        "features", "transform", "classifier", "dimensions", "top1", "low95", "high95", "top5", "balanced",
        "balanced_low95", "balanced_high95", "chosen", "seconds",
    }  # fmt: skip
    assert content["rows"][1]["chosen"].keys() == {"k", "temperature"}
    assert content["rows"][0]["chosen"].keys() == {"C"} and content["rows"][0]["top5"] is None
    assert content["protocol"] == "test part" and content["class_names"] == ["dark", "light", "red"]
    points = [(point["features"], point["per_class"], point["num_draws"]) for point in content["low_shot"]]
    assert points == [
        (features, per_class, 5)
        for features in ("pixels", "patches", "untrained", "byol online")
        for per_class in (1, 2, 5)
    ]
    assert content["low_shot"][2]["mean"] == 1.0  # 5 of 8 images of each colour
    confusion = content["confusion"]
    assert (confusion["features"], confusion["classifier"]) == ("byol online", "logistic regression")
    counts = np.array(confusion["counts"])
    assert counts.sum(axis=1).tolist() == [2, 2, 2]  # test images of each class
    right = by_name["byol online", "logistic regression"].top1
    assert np.trace(counts) / 6 == pytest.approx(right)


def test_each_protocol_setting_changes_the_table(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pca: list[int] = []
    fit = features_file.fit_pca

    def count(train: np.ndarray, *, dimensions: int, seed: int) -> object:  # type: ignore[type-arg]
        pca.append(len(train))
        return fit(train, dimensions=dimensions, seed=seed)

    monkeypatch.setattr(features_file, "fit_pca", count)
    table = evaluate(run_dir, overrides=["evaluation.folds=2", "evaluation.num_draws=3"])
    assert pca == [15, 15] and table.seen  # once a fold, for both classifiers and the curve
    assert (table.protocol, table.split) == ("2 folds", "images: 2 folds")
    assert (table.num_train, table.num_test) == (15, 30)
    assert (table.settings["folds"], table.settings["num_draws"]) == (2, 3)
    assert {point.num_draws for point in table.low_shot} == {3}
    assert sum(map(sum, table.confusion.counts)) == 30
    assert "'images': 2 folds; 30 images, each tested once; 3 classes" in table.render()
    table = evaluate(run_dir, overrides=["evaluation.sgd_above=23", "evaluation.num_draws=null"])
    assert {row.classifier for row in table.rows} == {"sgd", "knn", "whitened knn"} and table.low_shot == ()
    assert table.confusion.classifier == "sgd" and table.verdict().count("\n") == 2
    assert table.rows[0].chosen.keys() == {"lr"} and table.rows[0].top1 == 1.0


def test_few_groups_are_said_once(run_dir: Path, tmp_path: Path) -> None:
    names = [f"{name}/{index:03d}.png" for name in ("dark", "light", "red") for index in range(10)]
    lines = [f"{name},{name.split('/')[0]},{place % 4}" for place, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,plate", *lines]) + "\n")
    said: list[str] = []
    labels = [f"evaluation.labels={tmp_path / 'labels.csv'}", "evaluation.groups=plate", "evaluation.folds=2"]
    evaluate(run_dir, overrides=[*labels, "evaluation.num_draws=null"], say=said.append)
    assert [line for line in said if "rough" in line] == [
        "only 4 groups of test images, so the intervals are rough"
    ]


def test_without_a_target_there_is_no_row_for_it(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num=5)
    make_run(tmp_path / "run", tmp_path / "images", target=False)
    found = {row.features for row in evaluate(tmp_path / "run").rows}
    assert found == {"pixels", "patches", "untrained", "byol online"}


def test_values_are_scaled_as_in_training(tmp_path: Path) -> None:
    """The labelled images have other statistics than the run's: the run's count."""
    write_images(tmp_path / "images", num=2)
    write_images(tmp_path / "labelled", num=5, classes=("dark", "light"))
    make_run(tmp_path / "run", tmp_path / "images", target=False)
    seen: list[torch.Tensor] = []

    def record(self: Encoder, squares: torch.Tensor) -> torch.Tensor:
        seen.append(torch.tensor(self.spec.pixels.mean))
        return torch.rand(len(squares), 96)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", record)
        evaluate(tmp_path / "run", overrides=[f"evaluation.train={tmp_path / 'labelled'}"])
    spec = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert all(mean.tolist() == pytest.approx(spec["pixels"]["mean"]) for mean in seen) and len(seen) == 4


def test_the_test_labels_change_no_prediction_and_no_choice(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [row.chosen for row in evaluate(run_dir).rows]
    open_splits = table_file.open_splits
    for folder in (run_dir / "features").glob("*.npz"):
        folder.unlink()  # every classifier is fitted anew, beside the garbage

    def spoil(*arguments: object, **named: object) -> object:
        splits = open_splits(*arguments, **named)  # type: ignore[arg-type]
        return replace(splits, test=replace(splits.test, labels=np.zeros_like(splits.test.labels)))

    monkeypatch.setattr(table_file, "open_splits", spoil)
    spoilt = evaluate(run_dir)
    assert [row.chosen for row in spoilt.rows] == chosen
    assert spoilt.rows[0].top1 == pytest.approx(1 / 3)


@pytest.mark.parametrize("classifier", ["logistic regression", "sgd", "knn", "whitened knn"])
def test_a_fold_knows_nothing_of_the_labels_it_is_tested_on(tmp_path: Path, classifier: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (rng.normal(size=(60, 5)) + labels[:, None]).astype(np.float32)
    candidate = Candidate("byol online", "none", lambda fold: (features[fold.train], features[fold.test]))
    groups = Groups("plate", np.arange(60) // 4, tuple(map(str, range(15))))
    folds = make_folds(labels, num=3, seed=0, groups=groups)
    settings = {"classifier": classifier, "seed": 0}

    def predict_first(labels: np.ndarray, name: str) -> Predicted:
        part = Split(object.__new__(Packed), np.arange(60), labels, groups)
        splits = Splits(part, part, ("a", "b", "c"), "", 0, "3 folds by plate", folds[:1])
        return predict(candidate, splits, cache_folder=tmp_path / name, **settings)  # type: ignore[arg-type]

    garbage = labels.copy()
    garbage[folds[0].test] = rng.integers(0, 3, len(folds[0].test))
    one, other = predict_first(labels, "one"), predict_first(garbage, "other")
    assert one.chosen == other.chosen and not other.reused
    np.testing.assert_array_equal(one.ranked, other.ranked)
    assert (one.ranked[folds[0].test, 0] == labels[folds[0].test]).mean() > 0.5


# ---- Words


def make_row(features: str, classifier: str, top1: float, *, half: float = 0.02) -> Row:
    return Row(
        features=features,
        transform="pca-256" if features == "pixels" else "none",
        classifier=classifier,
        dimensions=96,
        top1=top1,
        low95=top1 - half,
        high95=top1 + half,
        top5=None,
        balanced=top1,
        balanced_low95=top1 - half,
        balanced_high95=top1 + half,
        chosen={"C": 0.01} if classifier == "logistic regression" else {"k": 20, "temperature": 0.07},
        seconds=0.5,
    )


def make_table(pixels: float, untrained: float, byol: float, *, half: float = 0.02) -> Table:
    shares = {"pixels": pixels, "untrained": untrained, "byol online": byol}
    rows = [
        make_row(features, classifier, share, half=half)
        for features, share in shares.items()
        for classifier in ("logistic regression", "knn")
    ]
    return Table(
        split="cells: every fifth",
        protocol="test part",
        settings={},
        num_train=80,
        num_test=20,
        num_classes=3,
        class_names=("a", "b", "c"),
        num_unlabelled=0,
        done=500,
        seconds=1.0,
        rows=tuple(rows),
        low_shot=(LowShot("untrained", 1, 5, 0.3, 0.02), LowShot("untrained", 10, 5, 0.5, 0.013)),
        confusion=Confusion("byol online", "logistic regression", ((6, 1, 0), (1, 6, 0), (0, 0, 6))),
    )


def test_the_table_in_words() -> None:
    lines = make_table(0.236, 0.572, 0.844).render().splitlines()
    assert lines[0] == "'cells': every fifth; classifiers trained on 80 images and tested on 20; 3 classes"
    assert lines[2].split() == [
        "features", "transform", "classifier", "dims", "top-1", "95", "%", "interval", "balanced",
        "95", "%", "interval", "chosen", "settings",
    ]  # fmt: skip
    (row,) = (line for line in lines if line.startswith("byol online  none       kNN "))
    assert (
        " ".join(row.split()[4:]) == "96 84.4 % 82.4 to 86.4 84.4 % 82.4 to 86.4 k = 20, temperature = 0.07"
    )
    assert lines[-1].startswith("BYOL helps: with kNN 84.4 %")
    assert lines[11].startswith("byol online: the trained encoder, BYOL.")
    assert lines[16:21] == [
        "logistic regression with few labels: top-1, mean ± std over 5 random draws",
        "",
        "training images per class             1            10",
        "-------------------------  ------------  ------------",
        "untrained                  30.0 ± 2.0 %  50.0 ± 1.3 %",
    ]
    seen = replace(make_table(0.2, 0.5, 0.8), seen=True).render().splitlines()[-2:]
    assert " ".join(seen) == SEEN
    without = replace(make_table(0.2, 0.5, 0.8), low_shot=()).render()
    assert "few labels" not in without and "\n\n\n" not in without
    rows = tuple(replace(row, top5=0.93) for row in make_table(0.2, 0.5, 0.8).rows)
    assert "93.0 %" in replace(make_table(0.2, 0.5, 0.8), rows=rows).render()
    rows = tuple(replace(row, chosen={"C": [0.1, 0.01]}) for row in rows)
    assert "C = 0.01 to 0.1" in replace(make_table(0.2, 0.5, 0.8), rows=rows).render()


# ---- What it refuses


def check_refused(kind: type[ByolError], run: Path, *overrides: str, message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        evaluate(run, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_run_or_no_encoder(tmp_path: Path) -> None:
    check_refused(
        CheckpointError, tmp_path / "none", message=r"none: holds no run \(no config\.yaml\); name the folder"
    )
    write_images(tmp_path / "images", num=2)
    make_run(tmp_path / "run", tmp_path / "images")
    (tmp_path / "run" / "encoder.safetensors").unlink()
    check_refused(CheckpointError, tmp_path / "run", message=r"has no encoder\.safetensors; name a run")


def test_overrides_must_not_change_what_the_run_was(run_dir: Path) -> None:
    check_refused(
        ConfigError,
        run_dir,
        "trainer.seed=5",
        message=r"evaluation cannot change these settings \(trainer\.seed: .* -> 5\); leave them out",
    )


def test_mistakes_are_told_before_the_long_work(run_dir: Path, tmp_path: Path) -> None:
    """Weights that are not there, and groups of which no validation part can be made."""
    check_labels(run_dir)
    for name in ("missing.pth", "table.csv"):
        with pytest.raises(CheckpointError, match=f"evaluation.weights: .*{name} is neither a folder"):
            check_labels(run_dir, overrides=[f"evaluation.weights={tmp_path / name}"])
    lines = [f"{name}/{i:03d}.png,{name},p{i % 2}" for name in ("dark", "red") for i in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,plate", *lines]))
    overrides = [f"evaluation.labels={tmp_path / 'labels.csv'}", "evaluation.groups=plate"]
    with pytest.raises(DataError, match=r"10 training images lie in 1 group\(s\)"):
        check_labels(run_dir, overrides=[*overrides, "evaluation.folds=2"])
    lines = [f"{name}/{i:03d}.png,{name}" for name in ("dark", "red") for i in range(2)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]))
    with pytest.raises(DataError, match="one image of each of 2 classes"):
        check_labels(run_dir, overrides=[overrides[0], "evaluation.folds=2"])


def test_labelled_images_with_other_channels(tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path / "images", num=2)
    make_run(tmp_path / "run", tmp_path / "images")
    for name in ("a", "b"):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for index in range(5):
            grey = np.full((PX, PX), 40 * index, dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / "grey" / name / f"{index}.png")
    check_refused(
        DataError,
        tmp_path / "run",
        f"evaluation.train={tmp_path / 'grey'}",
        message="grey: .* 1 channels.* trained on 3",
    )


def test_an_unwritable_run_folder_keeps_its_old_table(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "eval.json").write_text("old")
    table = make_table(0.1, 0.2, 0.3)
    with pytest.raises(CheckpointError, match="cannot be written"):
        table.save(run_dir / "config.yaml" / "eval.json")
    assert (run_dir / "eval.json").read_text() == "old"
