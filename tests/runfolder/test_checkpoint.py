"""Checkpoints: exact, whole or absent, checked; a damaged one is passed over; other runs are refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from byol.base.errors import CheckpointError, DiskReadError, RunMismatchError
from byol.base.files import write_atomically
from byol.config import load_config
from byol.runfolder import checkpoint
from failing_disk import fail_reading


def make_network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return network, optimizer


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network(torch.arange(12.0).view(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(run_dir: Path, done: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    return checkpoint.save(
        run_dir,
        done,
        byol=network,
        optimizer=optimizer,
        data_fingerprint="abc",
        num_microbatches=2,
        time_budget={"elapsed_s": 1.5},
        best={"done": 5},
        watch={"alarms": {"ill": 1}},
    )


def restore(
    run_dir: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, fingerprint: str = "abc"
) -> tuple[int, list[str]]:
    state, notes = checkpoint.read_latest(run_dir)
    assert state is not None and (state["num_parts"], state["pace"], state["best"]) == (
        2,
        {"elapsed_s": 1.5},
        {"done": 5},
    )
    done = checkpoint.restore(run_dir, state, byol=network, optimizer=optimizer, data_fingerprint=fingerprint)
    return done, notes


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    return [*network.state_dict().values(), *buffers]


def test_restore_is_exact(tmp_path: Path) -> None:
    network, optimizer = make_network()
    train_step(network, optimizer)
    save(tmp_path, 7, network, optimizer)
    other, other_optimizer = make_network()
    done, notes = restore(tmp_path, other, other_optimizer)
    assert done == 7 and notes == []
    for _ in range(3):
        train_step(network, optimizer)
        train_step(other, other_optimizer)
    for one, two in zip(state_of(network, optimizer), state_of(other, other_optimizer), strict=True):
        assert torch.equal(one, two)


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert checkpoint.read_latest(tmp_path) == (None, [])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    network, optimizer = make_network()
    for done in (5, 10, 15, 100_000_000):
        save(tmp_path, done, network, optimizer)
    (tmp_path / "checkpoints" / ".step-00000005.pt.abc").write_text("left by a kill")
    checkpoint.remove_temporaries(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(names) == 4 and not any("step-00000005" in name or "step-00000010" in name for name in names)


@pytest.mark.parametrize("damage", ["cut", "flip", "no checksum"])
def test_a_damaged_newest_is_passed_over(tmp_path: Path, damage: str) -> None:
    network, optimizer = make_network()
    save(tmp_path, 5, network, optimizer)
    expected = [value.clone() for value in network.state_dict().values()]
    train_step(network, optimizer)
    newest = save(tmp_path, 10, network, optimizer)
    data = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        newest.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    else:
        newest.with_name(newest.name + ".sha256").unlink()
    done, notes = restore(tmp_path, network, optimizer)
    assert done == 5 and len(notes) == 1 and newest.name in notes[0] and "continuing from" in notes[0]
    for got, wanted in zip(network.state_dict().values(), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("suffix", ["", ".sha256"])
def test_a_newest_that_the_disk_does_not_give_is_not_passed_over(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, optimizer = make_network()
    save(tmp_path, 5, network, optimizer)
    newest = save(tmp_path, 10, network, optimizer)
    with monkeypatch.context() as patched:
        fail_reading(patched, times=99, name=newest.name + suffix)
        message = r"may be intact: .*, or delete the file to continue from an earlier one"
        with pytest.raises(DiskReadError, match=message):
            checkpoint.read_latest(tmp_path)
    fail_reading(monkeypatch, times=2, name=newest.name + suffix)
    assert restore(tmp_path, network, optimizer) == (10, [])


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    network, optimizer = make_network()
    save(tmp_path, 5, network, optimizer).write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"step-00000005\.pt: is damaged .*; start again"):
        restore(tmp_path, network, optimizer)


def test_an_unknown_format_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, optimizer = make_network()
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save(tmp_path, 5, network, optimizer)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        restore(tmp_path, network, optimizer)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    """Only plain types are read: a pickled object is refused, not executed."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("executed",))

    path = tmp_path / "checkpoints" / "step-00000001.pt"
    data = pickle.dumps(Evil(), protocol=2)
    write_atomically(path.with_name(path.name + ".sha256"), hashlib.sha256(data).hexdigest().encode())
    write_atomically(path, data)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.read(path)


def test_other_images_are_refused(tmp_path: Path) -> None:
    network, optimizer = make_network()
    save(tmp_path, 5, network, optimizer)
    with pytest.raises(RunMismatchError, match="its images have changed"):
        restore(tmp_path, network, optimizer, fingerprint="other")


def test_another_configuration_is_refused_with_the_keys(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    network, optimizer = make_network()
    config = load_config(None, [], preset="demo")
    changed = load_config(None, ["trainer.batch_size=32", "optimizer.params.lr=0.5"], preset="demo")
    checkpoint.claim_run_folder(run_dir, changed)
    checkpoint.claim_run_folder(run_dir, config)  # nothing had been saved
    save(run_dir, 5, network, optimizer)
    checkpoint.claim_run_folder(run_dir, config)
    with pytest.raises(RunMismatchError, match=r"trainer\.batch_size: 64 -> 32; optimizer\.params\.lr: "):
        checkpoint.claim_run_folder(run_dir, changed)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds files but no run"):
        checkpoint.claim_run_folder(tmp_path, load_config(None, [], preset="demo"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"file: cannot be written \(No space left on device\)"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_path_through_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "below", b"x")


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path) -> None:
    """As when another version of timm names the layers in another way."""
    network, optimizer = make_network()
    train_step(network, optimizer)
    save(tmp_path, 7, network, optimizer)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match="step 7 does not fit the networks of its configuration"):
        restore(tmp_path, other, optimizer)
    with pytest.raises(CheckpointError, match="does not fit the networks"):
        restore(tmp_path, network, torch.optim.SGD([{"params": [p]} for p in network.parameters()], lr=0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"done": "7"}, r"is damaged \(done is a str\)"),
        ({"byol": None}, r"is damaged \(byol is a NoneType\)"),
        ({"best": 3}, r"is damaged \(best is a int\)"),
        ({"format": "x" * 100}, "has format x{20};"),
    ],
)
def test_values_of_other_types_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    network, optimizer = make_network()
    path = save(tmp_path, 7, network, optimizer)
    torch.save(checkpoint.read(path) | change, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(digest)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(path)
