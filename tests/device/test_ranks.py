"""Ranks: BatchNorm over two CPU ranks equals BatchNorm of the whole batch, forward and backward."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from byol.base.errors import ConfigError, RankLostError
from byol.config import load_config
from byol.device import ranks as distributed
from byol.device.ranks import Ranks, connect


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
    from_main = ranks.from_main(1.1 + rank)
    agree = [ranks.agree("equal"), ranks.agree(f"step {rank}"), ranks.agree("equal")]
    network = wrapped.module
    if rank == 0:
        gradients = {name: p.grad for name, p in network.named_parameters()}
        torch.save({"loss": mean_loss, "any": any_flag, "from_main": from_main, "gradients": gradients,
                    "agree": agree, "state": network.state_dict()}, f"{folder}/result.pt")  # fmt: skip
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    network = make_network()
    loss = loss_of(network, make_batch())
    loss.backward()
    assert result["loss"] == pytest.approx(loss.item(), abs=1e-6) and result["any"] is True
    assert result["from_main"] == 1.1 and result["agree"] == [True, False, True]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(result["gradients"][name], parameter.grad, atol=1e-6, rtol=1e-4)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(result["state"][name], value, atol=1e-6, rtol=1e-5)


def test_sync_batchnorm_in_eval_mode_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    loss_of(network, make_batch())
    synchronised = copy.deepcopy(network)
    distributed.synchronise_on_cpu(synchronised)
    assert list(synchronised.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(synchronised.eval()(make_batch()), network.eval()(make_batch()))


def test_foreign_batchnorm_is_refused() -> None:
    class OwnBatchNorm(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"network\.name: its OwnBatchNorm layers cannot"):
        distributed.synchronise_on_cpu(nn.Sequential(OwnBatchNorm(3)))


def test_one_rank_is_plain() -> None:
    with connect(load_config(None, ["trainer.device=cpu"], preset="demo").trainer) as ranks:
        assert ranks.is_main and ranks.rows(32) == slice(0, 32, 1)
        module = nn.Linear(2, 2)
        assert ranks.wrap(module) is module
        assert ranks.any(True) and not ranks.any(False) and ranks.agree("anything")
        ranks.wait()


def run_rank_in_parts(rank: int, folder: str) -> None:
    """One of two ranks with 6 of the 12 images, in three parts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"), torch.float32)
    wrapped = ranks.wrap(make_network())
    assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
    num_exchanged = 0

    def count(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal num_exchanged
        num_exchanged += 1
        return allreduce_hook(dist.group.WORLD, bucket)

    wrapped.register_comm_hook(None, count)
    for number in range(3):
        with ranks.exchange(wrapped, last=number == 2):
            (loss_of(wrapped, make_batch()[4 * number : 4 * number + 4][ranks.rows(4)]) / 3).backward()
    if rank == 0:
        gradients = {name: p.grad for name, p in wrapped.module.named_parameters()}
        torch.save({"num_exchanged": num_exchanged, "gradients": gradients}, f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ranks_exchange_the_gradients_of_all_parts_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank_in_parts, args=(str(tmp_path),), nprocs=2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert result["num_exchanged"] == 1
    network = make_network()
    for part in make_batch().split(4):
        (loss_of(network, part) / 3).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(result["gradients"][name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_a_batch_that_ranks_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    trainer = load_config(None, ["trainer.device=cpu"], preset="demo").trainer
    with pytest.raises(ConfigError, match="64 cannot be divided among 3 ranks"), connect(trainer):
        pass


def test_a_world_size_that_no_launcher_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    trainer = load_config(None, ["trainer.device=cpu"], preset="demo").trainer
    message = (
        r"WORLD_SIZE=2 is .*, but RANK and MASTER_ADDR and MASTER_PORT not: .*torchrun.* unset WORLD_SIZE"
    )
    with pytest.raises(ConfigError, match=message), connect(trainer):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection reset by peer"), "has ended"),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting"), "within 10 minutes"),
        (RuntimeError("Application timeout caused pair closure"), "within 10 minutes"),
        (dist.DistBackendError("NCCL error: remote process exited or a network error"), "has ended"),
    ],
)
def test_a_lost_rank_is_one_line(error: RuntimeError, said: str) -> None:
    with (
        pytest.raises(RankLostError, match=f"^rank 1 of 2: another rank .*{said}.*same command again"),
        distributed.naming_lost_ranks(1, 2),
    ):
        raise error


@pytest.mark.parametrize("text", ["shapes cannot be multiplied", "timed out while compiling"])
def test_other_errors_stay_as_they_are(text: str) -> None:
    with pytest.raises(RuntimeError, match=text), distributed.naming_lost_ranks(1, 2):
        raise RuntimeError(text)


def read_fp32_precision() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_fp32_on_a_gpu_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches, which are there without a GPU too; set while ranks are connected, then as before."""
    before = read_fp32_precision()
    trainer = load_config(None, ["trainer.precision=fp32"], preset="demo").trainer
    with connect(trainer):
        assert read_fp32_precision() == before
    monkeypatch.setattr(distributed, "choose_device", lambda *_, **__: torch.device("cuda"))
    for own in before, ("tf32", "tf32"), ("ieee", "none"):
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = own
        with pytest.raises(KeyError), connect(trainer):
            assert read_fp32_precision() == ("ieee", "ieee")
            raise KeyError
        assert read_fp32_precision() == own
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layer", [nn.Conv2d(64, 64, 3), nn.Linear(64, 64)])
def test_exact_fp32_rounds_to_24_bits(layer: nn.Module) -> None:
    images = torch.randn(16, 64, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = layer.double()(images)
    with distributed.exact_fp32(torch.device("cuda")):
        output = layer.float().cuda()(images.float().cuda()).cpu().double()
    assert float((output - expected).abs().max() / expected.abs().max()) < 1e-5  # TF32: 3e-4
