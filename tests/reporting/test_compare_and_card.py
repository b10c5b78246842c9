"""What sums up run folders: facts, `byol compare`, `byol card`; every part may be missing."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from byol.api.arguments import list_evaluation
from byol.base.errors import CheckpointError, ConfigError
from byol.cli.main import read_arguments
from byol.config import dump_config, load_config, write_override
from byol.device.ranks import Ranks
from byol.reporting.card import write_card
from byol.reporting.compare import compare
from byol.reporting.report_parts import summarise
from byol.reporting.run_summary import read_summary
from byol.runfolder import environment
from byol.runfolder.settings import read_config
from byol.training import best
from byol.training.best import Best

BASE = ["data.source=cells", "trainer.max_epochs=4", "trainer.batch_size=10"]
LINE = {
    "format": 1, "loss": 0.5, "lr": 0.06, "tau": 0.99, "feature_std": 0.05, "images_per_s": 100.0,
    "data_wait": 0.0, "verdict": "healthy", "rank": 20.0, "retrieval": 0.25, "encoder_rank": 75.0,
    "knn": None, "alignment": 0.4, "uniformity": -1.5,
}  # fmt: skip
TABLE = '{"format": 1, "split": "", "num_train": 1, "num_test": 1, "num_classes": 1, "rows": [%s]}'
ACCURACIES = {"pixels": 0.3, "untrained": 0.5, "byol online": 0.7, "byol target": 0.69}
HARD_VALUES = (
    "#x.csv", "null", "~", "3", "true", "a: b.csv", "[x].csv", "*s.csv", "it's \"x\".csv", "back\\slash",
    "größe 大 \U0001f600.csv", "--x.csv", "a.b=c.csv", "line\nbreak", "data.source=x", "-1",
)  # fmt: skip


def make_run(folder: Path, *overrides: str, done: int = 40, **line: Any) -> Path:
    """100 images, 10 steps an epoch, and a line of metrics at half the steps and at the end."""
    folder.mkdir()
    config = load_config(None, [*BASE, *overrides], preset="demo")
    (folder / "config.yaml").write_text(dump_config(config))
    lines = [LINE | {"done": step, "epoch": step / 10} | line for step in (done // 2, done)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    encoder = {
        "format": 2, "name": "resnet10t", "stem": "strided", "channels": 1, "view_px": 32, "stored_px": 48,
        "num_features": 512, "pixels": {"low": [0.0], "high": [9.0], "mean": [0.5], "std": [0.2]},
        "which": "online", "done": done, "byol_version": "0.1.0", "data_fingerprint": "abc",
        "data_name": "cells", "bits": 16,
    }  # fmt: skip
    (folder / "encoder.json").write_text(json.dumps(encoder))
    return folder


def evaluate(
    run_dir: Path,
    *,
    number: int = 1,
    online: float = 0.7,
    done: int = 40,
    protocol: str = "test part",
    **settings: object,
) -> None:
    """An `eval.json` of either format; `settings` are of `evaluation.`."""
    rows = [
        {"features": name, "transform": "none", "classifier": classifier, "dimensions": 8, "top1": share,
         "low95": share - 0.05, "high95": share + 0.05, "balanced": share - 0.1, "chosen": {}, "seconds": 1.0}
        for name, share in (ACCURACIES | {"byol online": online}).items()
        for classifier in ("logistic regression", "knn")
    ]  # fmt: skip
    table = {"format": number, "split": "test part", "num_train": 80, "num_test": 20, "num_classes": 2}
    new: dict[str, object] = (
        {"protocol": protocol, "class_names": ["a", "b"], "low_shot": []} if number == 2 else {}
    )
    if settings:
        overrides = [write_override(f"evaluation.{key}", value) for key, value in settings.items()]  # type: ignore[arg-type]
        new["settings"] = read_config(run_dir, overrides).evaluation.model_dump()
    table |= {"num_unlabelled": 0, "done": done, "seconds": 1.0, "rows": rows} | new
    (run_dir / "eval.json").write_text(json.dumps(table))


def record(run_dir: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"), torch.bfloat16)
    begun = environment.begin(run_dir, num_images=104, num_bad=2, first_step=0, ranks=ranks)
    environment.write(run_dir, begun, done=40)


def measure(run_dir: Path, *, warning: bool, done: int = 40) -> None:
    encoder = {"features": "byol online", "rank": 33.3, "max_rank": 512, "alignment": 0.3}
    column = {"column": "plate", "num_values": 4, "accuracy": 0.64, "chance": 0.25, "warning": warning}
    content = {"format": 1, "num_images": 104, "verdict": "Better than untrained.", "metadata": [column]}
    content |= {"done": done, "neighbours": [], "prototypes": [], "outliers": []}
    content |= {"encoders": [encoder | {"uniformity": -2.0, "retrieval": 0.8}]}
    (run_dir / "measures.json").write_text(json.dumps(content))


def cells_of(text: str) -> dict[str, list[str]]:
    """The table by its first column."""
    lines = [line for line in text.partition("\n\n")[0].splitlines()[2:]]
    rows = ([cell for cell in line.replace("  best", "best").split("  ") if cell] for line in lines)
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows}


# ---- RunSummary


def test_facts_of_a_bare_run(tmp_path: Path) -> None:
    facts = read_summary(make_run(tmp_path / "a"))
    assert (facts.name, facts.done, facts.num_images) == ("a", 40, 100)
    assert facts.hours == pytest.approx(40 * 10 / 100 / 3600)
    assert facts.table is facts.measures is facts.best is facts.environment is facts.start is None
    assert facts.encoder is not None and facts.encoder.bits == 16 and facts.verdicts == ()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no run \(no config\.yaml\); name the folder of a run"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("eval.json", "{", "cannot be read (Expecting property name"),
        ("eval.json", '{"format": 9, "rows": []}', "cannot be read (format is 9, not 1 or 2); "),
        ("eval.json", '{"format": 1}', "cannot be read (there is no 'split'); "),
        ("eval.json", TABLE % "{}", "cannot be read (there is no 'top1'); "),
        ("eval.json", TABLE % '{"top1": null}', "cannot be read (float() argument must be"),
        ("measures.json", '{"format": 1}', "cannot be read (there is no 'verdict'); "),
        ("measures.json", '{"format": 2}', "cannot be read (format is 2, not 1); "),
    ],
)
def test_a_damaged_file_of_an_evaluation(tmp_path: Path, name: str, text: str, problem: str) -> None:
    run_dir = make_run(tmp_path / "a")
    (run_dir / name).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_summary(run_dir)
    said = str(caught.value)
    assert said.startswith(f"{run_dir / name}: {problem}") and "\n" not in said
    assert said.endswith(f"; write it again: byol eval {run_dir}")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("encoder.json", "repeat the `byol train` command to write it again"),
        ("start.json", "start again in another folder with -o"),
        ("best.json", "delete it, it only names the best step"),
        ("environment.json", "delete it, byol can do without it"),
        ("metrics.jsonl", "delete it"),
    ],
)
def test_a_damaged_file_of_a_training(tmp_path: Path, name: str, advice: str) -> None:
    run_dir = make_run(tmp_path / "a")
    (run_dir / name).write_text('{"format": 9}\n')
    with pytest.raises(CheckpointError) as caught:
        read_summary(run_dir)
    said = str(caught.value)
    assert said.startswith(str(run_dir / name)) and said.endswith(advice) and "\n" not in said


def test_overrides_are_of_the_evaluation_alone(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    assert read_summary(run_dir, ["evaluation.labels=l.csv"]).config.evaluation.labels == "l.csv"
    with pytest.raises(ConfigError, match="cannot change these settings"):
        read_summary(run_dir, ["trainer.seed=3"])


def test_results_of_another_step_than_the_encoders_are_no_verdict(tmp_path: Path) -> None:
    """Stopped, evaluated and continued: each page names the two steps and the command, and judges nothing."""
    run_dir, other = make_run(tmp_path / "a b"), make_run(tmp_path / "c")
    evaluate(run_dir, number=2, done=20, labels="my.csv")
    measure(run_dir, warning=True, done=20)
    said = f"measured after step 20, but the encoder is of step 40: byol eval '{run_dir}' --labels my.csv"
    facts = read_summary(run_dir)
    assert facts.outdated_table == facts.outdated_measures == said and facts.verdicts == ()
    assert summarise(facts).sentence == f"The accuracies are for other weights: {said}."
    card = write_card(run_dir)
    assert (
        "**These results are for other weights: measured after step 20, but the encoder is of step 40: `"
        in card
    )
    assert "BYOL helps" not in card and "predict plate (for other weights, accuracy 64 %" in card
    rows = compare([run_dir, other])
    assert rows.endswith(f"{other} has not been evaluated: byol eval {other}") and f"was {said}\n" in rows
    assert "70.0 %" not in rows and "33.3" not in rows
    (run_dir / "eval.json").unlink()
    said = said.removesuffix(" --labels my.csv")
    assert summarise(read_summary(run_dir)).sentence == f"The measures are for other weights: {said}."
    assert f"Without labels: {said.replace('byol', '`byol', 1)}`." in write_card(run_dir)
    measure(run_dir, warning=True)
    evaluate(run_dir, done=20)
    assert summarise(read_summary(run_dir)).rest == ("Better than untrained.",)
    evaluate(run_dir)
    assert read_summary(run_dir).outdated_table is None and len(read_summary(run_dir).verdicts) == 2


# ---- compare


def test_runs_side_by_side(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", "trainer.seed=1")
    other = make_run(tmp_path / "b", "trainer.batch_size=20", "trainer.log_interval=7", loss=0.25)
    evaluate(one)
    evaluate(other, number=2, online=0.4)
    record(other)
    measure(other, warning=False)
    best.write(other, Best(30, 1.0, 1.0, 0.5))
    text = compare([one, other])
    rows = cells_of(text)
    assert text.splitlines()[0].split() == ["a", "b"]
    assert rows["images"] == ["100", "104"] and rows["loss"] == ["0.500", "0.250"]
    assert rows["logistic regression: byol"] == ["70.0 % (65.0 to 75.0)", "40.0 % (35.0 to 45.0)"]
    assert rows["best baseline"] == ["50.0 % (45.0 to 55.0) untrained"] * 2
    assert rows["all images: rank"] == ["-", "33.3"] and rows["best step, without labels"] == ["-", "30"]
    assert rows["trainer.seed"] == ["1", "0"] and rows["trainer.batch_size"] == ["10", "20"]
    assert "kNN: byol" in rows
    assert not any("log_interval" in key or "fixed images: kNN" in key for key in rows)
    assert "cannot be compared" not in text and "not been evaluated" not in text


def test_a_setting_of_both_views_is_one_row(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", "data_transforms.view.noise=0.1", "data_transforms.view1.blur=0.5")
    rows = cells_of(compare([one, other]))
    assert rows["data_transforms.view.noise"] == ["0.0", "0.1"]
    assert rows["data_transforms.view1.blur"] == ["0.0", "0.5"] and "data_transforms.view2.blur" not in rows


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in "abc"]
    for number, run_dir in enumerate(runs[:2], start=1):
        evaluate(run_dir)
        path = run_dir / "eval.json"
        path.write_text(path.read_text().replace('"num_test": 20', f'"num_test": {number}'))
    path = runs[0] / "encoder.json"
    path.write_text(path.read_text().replace("abc", "def"))
    (runs[2] / "metrics.jsonl").unlink()
    text = compare(runs)
    assert "tested on different images: accuracies cannot be compared" in text
    assert "trained on different images: loss and measures cannot be compared" in text
    assert text.endswith(f"{runs[2]} has not been evaluated: byol eval {runs[2]}")
    assert cells_of(text)["loss"] == ["0.500", "0.500", "-"]


def test_tests_of_the_same_size_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes and settings are compared where eval.json has them; a path may be written in two ways."""
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", "data.source=x/cells")
    evaluate(one, number=2, labels="l.csv", train="t")
    evaluate(other, number=2)
    assert "cannot be compared" not in compare([one, other])  # the other's settings are not known
    monkeypatch.chdir(tmp_path)
    Path("l.csv").touch()
    evaluate(other, number=2, labels=str(tmp_path / "l.csv"), train="t")
    assert "cannot be compared" not in compare([one, other])
    evaluate(other, number=2, labels="other.csv", seed=3)
    said = compare([one, other])
    assert "the runs were tested differently (train t, x/cells; labels " in said
    assert ", other.csv; seed 0, 3): accuracies cannot be compared" in said and "folds" not in said
    path = other / "eval.json"
    path.write_text(path.read_text().replace('["a", "b"]', '["a", "c"]'))
    assert "tested on different images: accuracies cannot" in compare([one, other])


def test_runs_of_one_name_are_told_by_path(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "x" / "a")
    assert compare([one, other]).splitlines()[0].split() == [str(one), str(other)]


def test_one_run_is_nothing_to_compare(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    for runs in ([run_dir], [run_dir, run_dir]):
        with pytest.raises(ConfigError, match="name two or more different runs"):
            compare(runs)


# ---- card


def test_a_card_of_an_evaluated_run(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    evaluate(run_dir)
    record(run_dir)
    best.write(run_dir, Best(30, 1.0, 1.0, 0.5))
    text = write_card(run_dir)
    assert (run_dir / "card.md").read_text() == text
    for part in (
        "# a\n", "test_resnet, strided stem, 512 features", "arXiv:2006.07733", "SGD (momentum 0.9",
        "batches of 10 images", "40 steps (4 epochs), seed 0", "in bf16", f"torch {torch.__version__}",
        "104 images of `cells`, 2 more could not be read", "1 channel, 16 bit", "`abc`",
        "**BYOL helps: with logistic regression 70.0 % "
        "against untrained 50.0 % and pixels 30.0 %; the intervals "
        "do not overlap.** **BYOL helps: with kNN 70.0 %",
        "| byol online | kNN | 70.0 % | 65.0 to 75.0 % | 60.0 % |", "The encoder of step 30",
        "byol train config.yaml -o runs/again && byol eval runs/again", "equal bit for bit",
    ):  # fmt: skip
        assert part in text, part
    assert "has not been evaluated" not in text and "unknown" not in text


def test_a_card_says_that_byol_does_not_help(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    evaluate(run_dir, online=0.35)
    text = write_card(run_dir)
    assert "**BYOL does not help here: with kNN 35.0 % against untrained 50.0 % and pixels 30.0 %; " in text
    assert (
        "- By logistic regression and kNN, its features are not shown to be better than simpler ones" in text
    )
    evaluate(run_dir, online=0.55)
    assert "**BYOL is ahead, but the difference is not certain: with kNN 55.0 %" in write_card(run_dir)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"seed": 0}, ""),
        (
            {"labels": "my cells.csv", "groups": "plate", "folds": 4},
            " --labels 'my cells.csv' --folds 4 --groups plate",
        ),
        (
            {"test": "test/", "weights": "timm:resnet18", "train": None},
            " evaluation.train=null --test test/ --weights timm:resnet18",
        ),
        ({"seed": 3, "num_draws": None}, " evaluation.num_draws=null evaluation.seed=3"),
    ],
)
def test_a_card_repeats_the_table_with_its_settings(
    tmp_path: Path, settings: dict[str, object], options: str
) -> None:
    run_dir = make_run(tmp_path / "a", "evaluation.train=labelled")
    evaluate(run_dir, number=2, **{"train": "labelled"} | settings)  # type: ignore[arg-type]
    text = write_card(run_dir)
    assert f"-o runs/again && byol eval runs/again{options}\n```" in text and "were not recorded" not in text


@pytest.mark.parametrize(
    ("protocol", "images", "resampled"),
    [
        ("test part", "80 training and 20 test images, 2 classes", "the test images"),
        ("5 folds", "20 images, each tested once, 2 classes", "all images"),
        ("5 folds by plate", "20 images, each tested once, 2 classes", "groups (images of one plate)"),
    ],
)
def test_a_card_says_what_was_tested(tmp_path: Path, protocol: str, images: str, resampled: str) -> None:
    run_dir = make_run(tmp_path / "a")
    evaluate(run_dir, number=2, protocol=protocol)
    text = write_card(run_dir)
    assert f"test part; {images}. The classifiers" in text and f"intervals are over {resampled}." in text


@pytest.mark.parametrize("value", HARD_VALUES)
def test_what_a_card_repeats_is_what_was_evaluated(tmp_path: Path, value: str) -> None:
    run_dir = make_run(tmp_path / "a")
    given = {"labels": value, "test": value, "weights": value, "groups": value, "folds": 3}
    evaluate(run_dir, number=2, **given)  # type: ignore[arg-type]
    table = read_summary(run_dir).table
    assert table is not None and table.options is not None
    options = read_arguments(["eval", "RUN", *shlex.split(table.options)])
    named = {
        name: getattr(options, name) for name in ("labels", "train", "test", "weights", "folds", "groups")
    }
    again = read_config(run_dir, list_evaluation(options.overrides, **named))
    assert again.evaluation.model_dump() == table.fields["settings"]
    assert str(run_dir) in write_card(run_dir)


def test_a_card_of_a_table_without_settings_says_so(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    evaluate(run_dir, number=2)
    text = write_card(run_dir)
    assert "byol eval runs/again\n```" in text
    assert "The options of `byol eval` were not recorded; it used: test part." in text


def test_a_card_without_an_evaluation(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a", done=20, verdict="weak")
    text = write_card(run_dir)
    assert "Not evaluated on labelled images." in text and "view-retrieval accuracy is 25 %" in text
    assert f"(`byol eval {run_dir} --labels LABELS.csv`)" in text and "About 100 images" in text
    assert "the training was *weak*" in text and "not finished: 20 of 40 steps" in text
    assert "hardware was not recorded" in text
    measure(run_dir, warning=True, done=20)
    text = write_card(run_dir)
    assert "Without labels: Better than untrained." in text
    assert "- The features predict plate (accuracy 64 %, chance 25 %)" in text


def test_a_card_names_what_is_more_than_byol(tmp_path: Path) -> None:
    more = "More than BYOL: the variance and covariance terms of VICReg"
    assert more not in write_card(make_run(tmp_path / "a"))
    text = write_card(make_run(tmp_path / "b", "trainer.vicreg_weight=0.5"))
    assert more in text and "falls from 0.5 to 0 in the first half of the run." in text
    text = write_card(make_run(tmp_path / "c", "trainer.vicreg_weight=1", "data_transforms.target_view=weak"))
    assert (
        more in text and "in the first half of the run; a weak view for the target network (crops of" in text
    )
    text = write_card(make_run(tmp_path / "d", "data_transforms.target_view=weak"))
    assert "More than BYOL: a weak view for the target network (crops of 40 % of the area or more" in text


def test_a_card_of_a_run_by_the_clock(tmp_path: Path) -> None:
    text = write_card(make_run(tmp_path / "a", "trainer.max_hours=1", "trainer.max_epochs=null"))
    assert "had a time budget" in text and "bit for bit" not in text


def test_a_card_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a")
    for name in ("metrics.jsonl", "encoder.json"):
        (run_dir / name).unlink()
    text = write_card(run_dir)
    assert "No step has been logged yet." in text and "An unknown number of images" in text
    record(run_dir)
    text = write_card(run_dir)
    assert "No step has been logged yet." in text and "104 images of `cells`" in text
