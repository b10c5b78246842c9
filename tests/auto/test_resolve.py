"""Open settings: chosen once, then taken from the run; the given is compared; a preview writes nothing."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from byol.auto import resolve
from byol.auto.train import train
from byol.base.errors import CheckpointError, ConfigError, RunMismatchError
from byol.base.signals import StopSignal
from byol.base.text_table import describe_duration
from byol.config import Config, PartialConfig, load_config, load_partial
from byol.data.sources.survey import Survey
from byol.device.ranks import Ranks
from byol.training import loop
from byol.training.loop import TrainingOutcome
from byol.training.step_benchmark import StepBenchmark

SMALL = [
    "network.name=test_resnet",
    "network.projection_head.mlp_hidden_size=8",
    "network.projection_head.projection_size=4",
    "trainer.max_epochs=1",
    "trainer.device=cpu",
    "trainer.num_workers=1",
]
LOOK = Survey(
    num_images=40,
    num_looked_at=40,
    num_bad=0,
    channels=2,
    bits=16,
    used_bits=12,
    is_grey=False,
    sides=(34, 34, 34, 34),
    one_size=True,
    low=(0.0, 0.0),
    high=(4095.0, 4095.0),
    blank=0.0,
    upright=0.5,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 4096, (40, 34, 34, 2), dtype=np.uint16))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of images and machine, in order."""
    seen: list[str] = []

    def survey(*arguments: object, **others: object) -> Survey:
        seen.append("survey")
        return LOOK

    def benchmark(
        config: Config, *, channels: int, stored_px: int, bits: int, wanted: int = 0, **threads: bool
    ) -> StepBenchmark:
        seen.append(f"{'batch' if wanted else 'step'} {channels} {stored_px} {bits}")
        return StepBenchmark(config.batch_size, 2 if wanted else 1, 0.5, 10**9, 2 * 10**9)

    monkeypatch.setattr(resolve, "survey", survey)
    monkeypatch.setattr(resolve, "choose_batch", benchmark)
    monkeypatch.setattr(resolve, "benchmark_step", benchmark)
    return seen


def configure(images: Path, *overrides: str) -> PartialConfig:
    return load_partial(None, [f"data.source={images}", *SMALL, *overrides], preset="default")


def run(partial_config: PartialConfig, run_dir: Path) -> tuple[TrainingOutcome, list[str]]:
    said = io.StringIO()
    outcome = train(partial_config, run_dir, console=Console(file=said, width=200))
    return outcome, said.getvalue().splitlines()


def test_the_same_again_continues_without_a_look(images: Path, tmp_path: Path, asked: list[str]) -> None:
    outcome, said = run(configure(images), tmp_path / "run")
    assert outcome.done == 2 and asked == ["survey", "batch 2 34 16"]
    assert said[:5] == [
        "looking at the images (at most 2,000 of them)",
        "timing a few training steps",
        "random changes (views) as for microscopy (the images have 16 bits and 2 channels)",
        "flips and rotation (orientation hardly matters: a test recognised turned images in 50 % of "
        "cases; chance is 50 %)",
        "view size 32 px (longest side of a typical image 34 px)",
    ]
    written = load_config(tmp_path / "run" / "config.yaml", [], preset=None)
    assert (written.data_transforms.domain, written.view_px) == ("microscopy", 32)
    assert (written.batch_size, written.accumulation_steps) == (16, 2)
    outcome, said = run(configure(images), tmp_path / "run")
    assert outcome.done == 2 and "this run is already finished: all 2 steps are done" in "\n".join(said)
    assert not any(line.startswith("random changes") for line in said) and len(asked) == 2


def test_other_ranks_read_what_the_first_has_chosen(images: Path, tmp_path: Path, asked: list[str]) -> None:
    configs = [
        resolve.resolve(
            configure(images),
            tmp_path / "run",
            ranks=Ranks(rank, 1, torch.device("cpu"), torch.float32),  # a world of 1, so that none waits
            say=lambda line: None,
        )
        for rank in (0, 1)
    ]
    assert configs[0][0] == configs[1][0] and asked.count("survey") == 1
    assert (configs[0][1], configs[1][1]) == (0.5, None)  # seconds of a step, where it was measured


def test_what_is_given_is_compared_with_the_run(images: Path, tmp_path: Path, asked: list[str]) -> None:
    run_dir = tmp_path / "run"
    run(configure(images), run_dir)
    before = (run_dir / "config.yaml").read_bytes()
    same = [
        "trainer.batch_size=16",
        "data_transforms.view.blur=0.3",
        "data_transforms.input_shape=[32,32,null]",
    ]
    assert run(configure(images, *same), run_dir)[0].done == 2
    with pytest.raises(
        RunMismatchError, match=r"\(trainer\.batch_size: 16 -> 8\); to continue it, repeat the command"
    ):
        run(configure(images, "trainer.batch_size=8"), run_dir)
    with pytest.raises(RunMismatchError, match=r"view1\.blur: 0\.3 -> 0\.0; .*view2\.blur: 0\.3 -> 0\.0\)"):
        run(configure(images, "data_transforms.view.blur=0.0"), run_dir)
    assert (run_dir / "config.yaml").read_bytes() == before and len(asked) == 2


def test_a_run_without_a_checkpoint_is_chosen_for_anew(
    images: Path, tmp_path: Path, asked: list[str]
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(ConfigError):  # found when the networks are made
        run(configure(images, "network.stem=small", "network.name=mobilenetv3_small_050"), run_dir)
    assert load_config(run_dir / "config.yaml", [], preset=None).batch_size == 16
    assert run(configure(images, "trainer.batch_size=8"), run_dir)[0].done == 5
    assert asked.count("survey") == 2


def test_mistakes_are_found_before_the_look(images: Path, tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        run(configure(images, "network.name=resnet19"), tmp_path / "run")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds files but no run"):
        run(configure(images), tmp_path)
    with pytest.raises(CheckpointError, match="holds files but no run"):
        resolve.preview(configure(images), tmp_path, say=print)
    assert asked == []


def test_a_preview_says_all_and_writes_nothing(
    images: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    say: Callable[[str], None] = said.append
    resolve.preview(configure(images), Path("run"), say=say)
    assert list(tmp_path.iterdir()) == []
    assert "batch size 16 (at most half of the 40 images)" in said
    assert any(line.startswith("learning rate 0.015 (") for line in said)
    assert said[-2:] == [
        "training takes about 1 s: 2 steps of 0.5 s (32 images/s)",
        "byol wrote nothing; to train, run the same command without -n",
    ]
    run(configure(images), Path("run"))
    said.clear()
    resolve.preview(configure(images), Path("run"), say=say)
    assert said == [
        "run: already finished: all 2 steps are done; to train longer, start a new run from its weights "
        "(byol train ... --init run -o NEW_FOLDER)",
        "byol wrote nothing, and nothing is left to train",
    ]


def test_a_preview_of_a_run_says_what_is_left(
    images: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training: with the settings of the run, other ones are refused, and the speed of now."""
    run_dir = tmp_path / "run"
    longer = configure(images, "trainer.max_epochs=10", "trainer.checkpoint_interval=1")
    stopped = loop.train

    def stop_early(config: Config, run_dir: Path, **options: object) -> TrainingOutcome:
        monkeypatch.setattr(StopSignal, "listen", listen)
        return stopped(config, run_dir, **options)  # type: ignore[arg-type]

    @contextmanager
    def listen(self: StopSignal) -> Iterator[StopSignal]:
        self.name = "SIGTERM"
        yield self

    monkeypatch.setattr(loop, "train", stop_early)
    assert run(longer, run_dir)[0] == TrainingOutcome(1, 20, "SIGTERM")
    before, said = sorted(tmp_path.rglob("*")), list[str]()
    resolve.preview(longer, run_dir, say=said.append)
    assert said[0] == f"{run_dir} holds a run: byol would continue it after step 1 of 20, with its settings"
    assert said[-2:] == [
        "training takes about 10 s more: 19 steps of 0.5 s",
        "byol wrote nothing; to continue training, run the same command without -n",
    ]
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(RunMismatchError, match=r"trainer\.max_epochs: 10 -> 3"):
        resolve.preview(configure(images, "trainer.max_epochs=3"), run_dir, say=print)


@pytest.mark.parametrize(("seconds", "words"), [(80.0, "80 s"), (1800.0, "30 min"), (9000.0, "2.5 h")])
def test_time_in_words(seconds: float, words: str) -> None:
    assert describe_duration(seconds) == words


@pytest.mark.slow
def test_a_preview_refuses_weights_as_training_does(images: Path, tmp_path: Path) -> None:
    torch.save({"x.y": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "page.pth").write_text("<html>")
    for name, reason in (("other.pth", "does not fit the encoder"), ("page.pth", "is a web page")):
        partial_config = configure(images, f"network.fine_tune_from={tmp_path / name}")
        with pytest.raises(CheckpointError, match=reason) as previewed:
            resolve.preview(partial_config, tmp_path / "a", say=print)
        with pytest.raises(CheckpointError, match=reason) as trained:
            run(partial_config, tmp_path / "b")
        assert str(previewed.value) == str(trained.value)
