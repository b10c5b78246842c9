"""Ranks: BatchNorm over two CPU ranks equals BatchNorm of the whole batch, forward and backward."""

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from byol.config import load_config
from byol.errors import ConfigError
from byol.training import distributed
from byol.training.distributed import Ranks, StopSignal, choose_device, choose_dtype, connect


def make_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def make_batch() -> Tensor:
    return torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3.0 + 1.0


def loss_of(network: nn.Module, batch: Tensor) -> Tensor:
    return (network(batch) - 0.5).square().mean()


def run_rank(rank: int, folder: str) -> None:
    """One of two ranks with 6 of the 12 images."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"), torch.float32)
    wrapped = ranks.wrap(make_network())
    loss = loss_of(wrapped, make_batch()[ranks.rows(12)])
    loss.backward()
    mean_loss, any_flag = ranks.mean(loss), ranks.any(rank == 1)
    network = wrapped.module
    if rank == 0:
        gradients = {name: p.grad for name, p in network.named_parameters()}
        torch.save({"loss": mean_loss, "any": any_flag, "gradients": gradients,
                    "state": network.state_dict()}, f"{folder}/result.pt")  # fmt: skip
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    network = make_network()
    loss = loss_of(network, make_batch())
    loss.backward()
    assert result["loss"] == pytest.approx(loss.item(), abs=1e-6) and result["any"] is True
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(result["gradients"][name], parameter.grad, atol=1e-6, rtol=1e-4)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(result["state"][name], value, atol=1e-6, rtol=1e-5)


def test_sync_batchnorm_in_eval_mode_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    loss_of(network, make_batch())
    synchronised = copy.deepcopy(network)
    distributed._synchronise_on_cpu(synchronised)
    assert list(synchronised.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(synchronised.eval()(make_batch()), network.eval()(make_batch()))


def test_foreign_batchnorm_is_refused() -> None:
    class OwnBatchNorm(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"network\.name: its OwnBatchNorm layers cannot"):
        distributed._synchronise_on_cpu(nn.Sequential(OwnBatchNorm(3)))


def test_one_rank_is_plain() -> None:
    with connect(load_config(None, ["trainer.device=cpu"], preset="demo").trainer) as ranks:
        assert ranks.is_main and ranks.rows(32) == slice(0, 32, 1)
        module = nn.Linear(2, 2)
        assert ranks.wrap(module) is module
        assert ranks.any(True) and not ranks.any(False)
        ranks.wait()


def test_a_batch_that_ranks_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    trainer = load_config(None, ["trainer.device=cpu"], preset="demo").trainer
    with pytest.raises(ConfigError, match="64 cannot be shared by 3 ranks"), connect(trainer):
        pass


def test_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda")
    cpu = torch.device("cpu")
    for hardware, dtype in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda hardware=hardware: hardware)
        assert choose_dtype("auto", device=cpu) == dtype
        assert choose_dtype("fp32", device=cpu) == torch.float32
        assert choose_dtype("bf16", device=cpu) == torch.bfloat16


def test_a_signal_is_a_wish_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal().listen() as stop:
        assert stop.name is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before
    with StopSignal().listen() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
