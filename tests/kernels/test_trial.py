"""A fast path is taken where it was measured to win, elsewhere where it wins here; the answer is kept."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import torch

from byol.config import load_config
from byol.kernels import build, normalisation, trial, winograd
from byol.method.networks import Byol


@pytest.fixture(autouse=True)
def unknown_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As on an instruction set that nobody has measured."""
    monkeypatch.setattr(trial, "MEASURED", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trial.wins.cache_clear()
    yield
    trial.wins.cache_clear()


class Clock:
    """A time that passes only when work is done."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def __call__(self) -> float:
        return self.seconds

    def work(self, *seconds: float) -> trial.Work:
        """Work that takes so long, from one call to the next."""
        left = list(seconds)

        def take(dtype: torch.dtype) -> None:
            assert dtype == torch.float32
            self.calls += 1
            self.seconds += left.pop(0) if len(left) > 1 else left[0]

        return take


@pytest.mark.parametrize(
    ("ours", "library", "expected"), [(1.0, 2.0, True), (2.0, 1.0, False), (0.97, 1.0, False)]
)
def test_the_faster_by_a_margin_is_taken_and_kept(
    ours: float, library: float, expected: bool, tmp_path: Path
) -> None:
    clock = Clock()
    jobs = {"ours": clock.work(ours), "library": clock.work(library), "now": clock}
    assert trial.wins("path", torch.float32, **jobs) is expected
    calls = clock.calls
    trial.wins.cache_clear()  # another process of this machine
    other = Clock()
    assert (
        trial.wins("path", torch.float32, ours=other.work(library), library=other.work(ours), now=other)
        is expected
    )
    assert other.calls == 0 and calls == 12
    (kept,) = (tmp_path / "byol").glob("trial-path-float32-*.json")
    assert json.loads(kept.read_text()) == {
        "ours_s": pytest.approx(ours),
        "library_s": pytest.approx(library),
    }


def test_the_first_round_and_slow_ones_do_not_count() -> None:
    clock = Clock()
    assert trial.wins(
        "path", torch.float32, ours=clock.work(0.1, 9.0, 1.0), library=clock.work(2.0), now=clock
    )


def test_a_damaged_answer_is_measured_again(tmp_path: Path) -> None:
    clock = Clock()
    trial.wins("path", torch.float32, ours=clock.work(2.0), library=clock.work(1.0), now=clock)
    (kept,) = (tmp_path / "byol").glob("trial-path-float32-*.json")
    for text in ("", "[]", '{"ours_s": 1}', '{"ours_s": "x", "library_s": 1}'):
        kept.write_text(text)
        trial.wins.cache_clear()
        assert trial.wins("path", torch.float32, ours=clock.work(1.0), library=clock.work(2.0), now=clock)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(trial, "cache_folder", lambda: tmp_path / "file")
    clock = Clock()
    assert trial.wins("path", torch.float32, ours=clock.work(1.0), library=clock.work(2.0), now=clock)


def test_where_paths_were_measured_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MEASURED", (trial.instruction_set(),))
    clock = Clock()
    assert trial.wins("path", torch.float32, ours=clock.work(2.0), library=clock.work(1.0), now=clock)
    assert clock.calls == 0


@pytest.mark.skipif(build.load_kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize("faster", [True, False])
def test_both_paths_ask(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(name: str, dtype: torch.dtype, *, ours: trial.Work, library: trial.Work) -> bool:
        ours(dtype)  # both can be done
        library(dtype)
        asked.append((name, dtype))
        return faster

    for module in (winograd, normalisation):
        monkeypatch.setattr(module, "wins", answer)
    tile = winograd.choose_tile(64, 64, height=8, width=8, dtype=torch.float32)
    norm = torch.nn.BatchNorm2d(64)
    fused = normalisation.can_fuse(torch.ones(1, 64, 4, 4), norms=(norm,), relus=(torch.nn.ReLU(),))
    assert asked == [("winograd", torch.float32), ("norms", torch.float32)]
    assert (tile is not None) is faster and fused is faster


@pytest.mark.skipif(build.load_kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", dtype=torch.bfloat16)]
)
def test_paths_are_tried_in_any_mode(
    mode: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    """The first to ask is the target network, which computes no gradients."""
    norm, maps = torch.nn.BatchNorm2d(64), torch.ones(1, 64, 4, 4)
    with mode():
        normalisation.can_fuse(maps, norms=(norm,), relus=(torch.nn.ReLU(),))
        winograd.choose_tile(64, 64, height=8, width=8, dtype=torch.float32)
    tried = {tuple(path.name.split("-")[1:3]) for path in (tmp_path / "byol").glob("trial-*.json")}
    dtype = "bfloat16" if mode not in (torch.no_grad, torch.inference_mode) else "float32"
    assert tried == {("norms", dtype), ("winograd", "float32")}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_network_trains_on_a_cpu_that_nobody_has_measured(precision: torch.dtype) -> None:
    settings = ["network.name=resnet10t", "network.stem=small", "data_transforms.input_shape=[32,32,3]"]
    config = load_config(None, [*settings, "trainer.convolution=fast"], preset="classic")
    learner = Byol.of(config, channels=3, seed_key=0)
    views = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        loss, _ = learner(*views)
    loss.backward()
    assert all(one.grad is not None for one in learner.online.parameters())
