"""The report: what it says of good and bad runs, what is missing, and that names of others do no harm."""

import base64
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from byol.base.errors import CheckpointError, ConfigError, DataError
from byol.config import dump_config, load_config
from byol.evaluation.labelled import SEEN
from byol.pictures import thumbnails
from byol.reporting import embedding_map, report
from byol.reporting.card import write_card
from byol.reporting.embedding_map import NOWHERE, choose_rows, place_slowly, to_uint16
from byol.reporting.report import WEB, write_report
from byol.reporting.report_parts import summarise
from byol.reporting.run_summary import read_summary
from trained import HARD_NAMES, open_embedded, train_run, write_evaluation, write_measures


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(autouse=True)
def without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds to import, where it is installed."""
    monkeypatch.setattr(report, "list_slow_maps", lambda: ("t-SNE",))


@pytest.fixture
def run_dir(finished: Path) -> Path:
    """Without eval.json and measures.json."""
    for name in ("eval.json", "measures.json"):
        (finished / name).unlink(missing_ok=True)
    return finished


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def first_sentence(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)
    assert found is not None
    return re.sub(r"<.*?>", "", found[1])


def test_a_whole_report(run_dir: Path, tmp_path: Path) -> None:
    write_evaluation(run_dir)
    write_measures(run_dir)
    said: list[str] = []
    path = write_report(run_dir, output=tmp_path / "r.html", say=said.append)
    page = read(path)
    assert first_sentence(page) == (
        "BYOL helps: with logistic regression 90.0 % "
        "against untrained 50.0 % and pixels 40.0 %; the intervals do "
        "not overlap."
    )
    for words in (
        *(
            "Few labels",
            "predicted class",
            "View-retrieval accuracy",
            "Loss",
            "Target momentum",
            "Throughput",
        ),
        *("Outliers", "plate", "features predict it", "eight views", "byol train", "fingerprint"),
    ):
        assert words in page, words
    assert said == ["computing t-SNE of 36 images"]
    assert not re.search(r"""(src|href|url\()=?["']?(https?:)?//""", page) and "http" not in re.sub(
        r"<svg.*?</svg>", "", page, flags=re.DOTALL
    ).replace("http-equiv", "")


def test_a_term_that_byol_does_not_have_is_named(run_dir: Path, tmp_path: Path) -> None:
    words = "More than BYOL: the variance and covariance terms of VICReg"
    assert words not in read(write_report(run_dir, output=tmp_path / "without.html", say=print))
    config = load_config(run_dir / "config.yaml", ["trainer.vicreg_weight=1"], preset=None)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert words in read(write_report(run_dir, output=tmp_path / "with.html", say=print))


def test_the_card_and_the_report_say_that_test_images_were_seen(run_dir: Path, tmp_path: Path) -> None:
    """An earlier eval.json does not say it, and neither do they."""
    write_evaluation(run_dir)
    path = run_dir / "eval.json"
    content = json.loads(path.read_text())
    for seen in (None, False, True):
        path.write_text(json.dumps(content if seen is None else content | {"seen": seen}))
        page = read(write_report(run_dir, output=tmp_path / "r.html"))
        assert (SEEN in page, SEEN in write_card(run_dir)) == (seen is True,) * 2


def test_names_of_others_are_text(run_dir: Path, tmp_path: Path) -> None:
    write_evaluation(run_dir)
    write_measures(run_dir)
    page = read(write_report(run_dir, output=tmp_path / "r.html"))
    assert "<img src=x" not in page and "<i>red" not in page and "<b>.png" not in page
    island = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', page, re.DOTALL)
    assert island is not None
    data = json.loads(island[1])
    assert {name.split("/")[-1] for name in data["names"]} >= set(HARD_NAMES)
    assert any("red" in name for name in data["columns"][0]["classes"])


@pytest.mark.parametrize(
    ("online", "words", "kind"),
    [
        (0.9, "BYOL helps:", "good"),
        (0.53, "BYOL is ahead, but the difference is not certain:", "warn"),
        (0.5, "BYOL is not better than the best baseline:", "bad"),
        (0.3, "BYOL does not help here:", "bad"),
    ],
)
def test_the_verdict_is_that_of_the_table(run_dir: Path, online: float, words: str, kind: str) -> None:
    write_evaluation(run_dir, online=online, version=1)
    summary = summarise(read_summary(run_dir))
    assert summary.sentence.startswith(words) and (summary.kind, summary.rest) == (kind, ())


def test_without_labels_the_measures_decide(run_dir: Path) -> None:
    write_measures(run_dir)
    assert summarise(read_summary(run_dir)).sentence.startswith("The encoder finds 80 %")


def test_the_trainings_copy_of_the_images_is_used(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second one is made, also where nothing could be written."""
    packs = run_dir.parent / "packs"
    before = sorted(packs.iterdir())

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR and Path(path).parent == packs:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, mode)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert len(open_embedded(run_dir).images) == 36 and sorted(packs.iterdir()) == before


def test_what_is_missing_is_said_with_its_command(run_dir: Path, tmp_path: Path) -> None:
    page = read(write_report(run_dir, output=tmp_path / "r.html"))
    assert "has not been measured yet" in first_sentence(page)
    assert page.count(f"byol eval {run_dir}</code>") == 2 and f"byol eval {run_dir} --labels" in page
    write_evaluation(run_dir, version=1)
    page = read(write_report(run_dir, output=tmp_path / "r.html"))
    assert "the curve over few labels" in page and "does not contain a confusion matrix" in page


def test_results_of_other_weights_are_no_verdict(run_dir: Path, tmp_path: Path) -> None:
    write_evaluation(run_dir)
    write_measures(run_dir)
    for name in ("eval.json", "measures.json"):
        content = json.loads((run_dir / name).read_text())
        (run_dir / name).write_text(json.dumps(content | {"done": 4}))
    page = read(write_report(run_dir, output=tmp_path / "r.html"))
    said = f"measured after step 4, but the encoder is of step 8: byol eval {run_dir}"
    assert first_sentence(page) == f"The accuracies are for other weights: {said}."
    assert page.count(f'<p class="warn">{said}</p>') == 3  # table, measures, neighbours
    assert "BYOL helps" not in page and "finds 80 %" not in page


def test_folds_and_groups_are_described(run_dir: Path, tmp_path: Path) -> None:
    write_evaluation(run_dir)
    content = json.loads((run_dir / "eval.json").read_text())
    folds = {"protocol": "5 folds by plate", "split": "images: 5 folds by plate"}
    (run_dir / "eval.json").write_text(json.dumps(content | folds))
    page = read(write_report(run_dir, output=tmp_path / "r.html"))
    assert "images: 5 folds by plate; 8 images, each tested once, 3 classes. Whiskers are 95" in page
    assert "intervals over groups (images of one plate);" in page and "Labelled images" in page


def test_images_that_are_gone_leave_the_numbers(run_dir: Path, tmp_path: Path) -> None:
    write_evaluation(run_dir)
    said: list[str] = []
    gone = ["data.source=gone", f"data.packs={tmp_path}"]  # neither the images nor their pack
    page = read(write_report(run_dir, output=tmp_path / "r.html", overrides=gone, say=said.append))
    assert first_sentence(page).startswith("BYOL helps") and "Loss" in page
    assert len(said) == 1 and said[0].startswith(
        "the report has no pictures: the images cannot be opened (gone: "
    )
    assert "name their folder with data.source=FOLDER" in page


def test_many_classes_are_a_picture_and_pairs(run_dir: Path, tmp_path: Path) -> None:
    write_evaluation(run_dir, num_classes=121)
    page = read(write_report(run_dir, output=tmp_path / "r.html"))
    assert 'class="heat"' in page and 'class="confusion"' not in page and "predicted class" in page


def test_mistakes_are_one_line(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="cannot change these settings"):
        write_report(run_dir, overrides=["trainer.seed=3"])
    with pytest.raises(DataError, match=r"labels.csv: cannot be opened"):
        write_report(run_dir, labels=tmp_path / "labels.csv")
    (run_dir / "eval.json").write_text('{"format": 9}')
    with pytest.raises(
        CheckpointError, match=r"cannot be read \(format is 9, not 1 or 2\); write it again: byol eval"
    ):
        write_report(run_dir)
    (run_dir / "eval.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"eval.json: cannot be read \(Expecting .*\); write it again: byol eval"
    ):
        write_report(run_dir)


def test_measures_of_other_images_are_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything that takes long."""
    write_measures(run_dir)
    monkeypatch.setattr(report, "Embedded", None)
    content = json.loads((run_dir / "measures.json").read_text())
    content["outliers"][0]["name"] = "other.png"
    (run_dir / "measures.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"other.png: is no longer among the images; run byol eval"):
        write_report(run_dir)


def test_a_run_that_cannot_be_written_is_reported_elsewhere(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache is still read; what is new is not kept, which is said once."""
    copied = tmp_path / "runs" / "a"
    shutil.copytree(run_dir, copied)
    (copied / "map.npz").unlink(missing_ok=True)
    (copied / "map.npz").mkdir()
    for kept in (copied / "features").glob("*"):
        kept.unlink()
    (copied / "features").rmdir()
    (copied / "features").touch()
    said: list[str] = []
    page = read(write_report(copied, output=tmp_path / "r.html", say=said.append))
    assert "map-data" in page and len(said) == 3 and said[1] == "computing t-SNE of 36 images"
    assert said[0].startswith("the features are not cached: ") and said[2].startswith(
        "the map is not cached: "
    )

    write_report(run_dir, output=tmp_path / "r.html")
    cached = {path.name: path.stat().st_mtime_ns for path in (run_dir / "features").iterdir()}

    def refuse(path: Path) -> None:
        raise CheckpointError(f"{path}: cannot be written")

    monkeypatch.setattr(embedding_map, "check_writable", refuse)
    asked: list[int] = []
    write_report(run_dir, output=tmp_path / "r.html", progress=lambda done, total: asked.append(done))
    assert asked == [] and cached == {
        path.name: path.stat().st_mtime_ns for path in (run_dir / "features").iterdir()
    }


# ---- The map


def test_columns_of_a_csv_colour_the_map(run_dir: Path, tmp_path: Path) -> None:
    names = list(open_embedded(run_dir).images.names)
    rows = [f"blue/{at:02d}.png,p{at % 2}" for at in range(12)]
    (tmp_path / "plates.csv").write_text("\n".join(["file,plate", *rows]) + "\n")
    path = write_report(run_dir, metadata=tmp_path / "plates.csv", output=tmp_path / "r.html", most_images=20)
    island = re.search(r'id="map-data">(.*?)</script>', read(path), re.DOTALL)
    assert island is not None
    data = json.loads(island[1])
    assert data["count"] == 20 and [column["name"] for column in data["columns"]] == ["label", "plate"]
    values = np.frombuffer(base64.b64decode(data["columns"][1]["values"]), "<i4")
    chosen = [names[row] for row in choose_rows(36, 20).tolist()]
    assert data["names"] == chosen
    expected = [int(name[5:7]) % 2 if name.startswith("blue/") else -1 for name in chosen]
    assert values.tolist() == expected
    near = np.frombuffer(base64.b64decode(data["near"]), "<u2").reshape(20, data["perRow"])
    assert (near[:, 0] == np.arange(20)).all()


def test_of_many_images_slow_maps_place_some(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_map, "MOST_PLACED", 12)
    page = read(write_report(run_dir, output=tmp_path / "r.html", most_images=30))
    island = re.search(r'id="map-data">(.*?)</script>', page, re.DOTALL)
    assert island is not None
    placed = {
        name: int(
            (np.frombuffer(base64.b64decode(places), "<u2").reshape(-1, 2) != NOWHERE).any(axis=1).sum()
        )
        for name, places in json.loads(island[1])["layouts"]
    }
    assert placed == {"t-SNE": 12, "PCA": 30}


@pytest.mark.parametrize("most_images", [-5, 0, 65_536])
def test_numbers_of_images_that_cannot_be_shown(run_dir: Path, most_images: int) -> None:
    with pytest.raises(ConfigError, match=f"--images {most_images}: a report has 1 to 65,535 on its map"):
        write_report(run_dir, most_images=most_images)


def test_slow_maps_are_kept_for_the_same_features_alone(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    said: list[str] = []
    first = place_slowly("t-SNE", x, run_dir=tmp_path, seed=0, say=said.append)
    again = place_slowly("t-SNE", x, run_dir=tmp_path, seed=0, say=said.append)
    assert (first == again).all() and said == ["computing t-SNE of 30 images"]
    place_slowly("t-SNE", x[:20], run_dir=tmp_path, seed=0, say=said.append)
    assert len(said) == 2
    (tmp_path / "map.npz").write_bytes(b"damaged")
    place_slowly("t-SNE", x, run_dir=tmp_path, seed=0, say=said.append)
    assert len(said) == 3


def test_umap_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Umap:
        def __init__(self, **options: int) -> None:
            assert options == {"n_neighbors": 15, "random_state": 4}

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    x = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    assert place_slowly("UMAP", x, run_dir=tmp_path, seed=4, say=lambda line: None).shape == (30, 2)


def test_places_keep_their_shape_and_never_look_like_nowhere() -> None:
    places = to_uint16(np.array([[0, 0], [10, 0], [0, 5]], np.float32))
    assert places.tolist() == [[0, 16250], [65000, 16250], [0, 48750]] and places.max() < NOWHERE


def test_thumbnails_fit_into_their_bytes(run_dir: Path) -> None:
    images = open_embedded(run_dir).images
    large = thumbnails.draw_sheets(images, np.arange(36), most_bytes=10**6)
    small = thumbnails.draw_sheets(images, np.arange(36), most_bytes=1)
    assert large.px == small.px == 16 and len(large.sheets) == 1
    assert len(small.sheets[0]) < len(large.sheets[0])


def test_the_wheel_holds_templates_style_and_scripts(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    root = Path(__file__).parents[2]
    shutil.copytree(root / "src", tmp_path / "p" / "src")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path / "p")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path / "p", check=True
    )
    (wheel,) = (tmp_path / "p" / "dist").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {f"byol/reporting/web/{path.name}" for path in WEB.iterdir()} <= inside
    assert "byol/checking/web/check.html" in inside
