"""Packs in object storage: a web server stalls, breaks off, fails or gives wrong bytes; a bounded cache."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from byol.base.errors import ConfigError, DataError
from byol.config import load_config
from byol.data.pack import fetching, remote
from byol.data.pack.batches import Batches
from byol.data.pack.fetching import FetchError, Store
from byol.data.pack.images import open_images
from byol.data.pack.packed import Packed
from byol.data.pack.packed_source import PackedSource
from byol.data.pack.remote import open_remote
from byol.method.order import WINDOW
from byol.method.schedule import Plan
from sharding import Images, draw, pack_in_parts
from web_store import (
    Fault,
    Server,
    answer,
    break_off,
    cut_short,
    endless,
    serve,
    slow,
    stall_before,
    stall_within,
    wrong_bytes,
)

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of connections that stall

COUNT = 20  # shards


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_in_parts(Images(draw(100)), tmp_path_factory.mktemp("joined") / "cells", COUNT)


@pytest.fixture
def server(joined: Packed) -> Iterator[Server]:
    with serve(joined.folder.parent) as server:
        yield server


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES_S", (0.01, 0.01, 0.01))


def open_at(server: Server, packs: Path, *, cache_gb: float = 1.0) -> Packed:
    return open_remote(f"{server.address}/cells", packs, cache_gb=cache_gb)


def cached(packs: Path) -> list[str]:
    return sorted(path.name for path in (packs / "remote" / "shards").glob("[!.]*"))


def test_the_same_images_as_in_the_folder(joined: Packed, server: Server, tmp_path: Path) -> None:
    packed = open_at(server, tmp_path)
    assert packed.is_remote and packed.fingerprint == joined.fingerprint and packed.pixels == joined.pixels
    assert list(packed.names) == list(joined.names) and cached(tmp_path) == []
    np.testing.assert_array_equal(packed.read(np.array([0, 3])), joined.images[[0, 3]])
    assert len(cached(tmp_path)) == 1  # whole shards, when they are needed
    np.testing.assert_array_equal(packed.images, joined.images)
    assert len(cached(tmp_path)) == COUNT
    before = dict(server.requests)
    np.testing.assert_array_equal(open_at(server, tmp_path).images, joined.images)
    assert {path for path in server.requests if server.requests[path] > before.get(path, 0)} == {
        "/cells/pack.json"
    }


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_addresses(joined: Packed, tmp_path: Path, protocol: str) -> None:
    import fsspec

    address = f"{protocol}://{joined.folder}"
    if protocol == "memory":
        fsspec.filesystem("memory").put(str(joined.folder), str(joined.folder), recursive=True)
    np.testing.assert_array_equal(open_remote(address, tmp_path, cache_gb=1.0).images, joined.images)


@pytest.mark.parametrize("path", ["pack.json", "names.npy", "shard-00007/images.npy"])
@pytest.mark.parametrize("fault", [break_off, cut_short, answer(500), answer(503), wrong_bytes, endless])
def test_a_fault_that_passes(joined: Packed, server: Server, tmp_path: Path, path: str, fault: Fault) -> None:
    server.inject(path, fault, times=2)
    if path == "pack.json" and fault is endless:
        with pytest.raises(FetchError, match=r"pack\.json: is longer than"):
            open_at(server, tmp_path)
        return
    np.testing.assert_array_equal(open_at(server, tmp_path).images, joined.images)
    assert server.requests[f"/cells/{path}"] == 3
    assert not list((tmp_path / "remote").rglob("*.npy.*"))


@pytest.mark.parametrize("fault", [stall_before, stall_within])
def test_a_store_that_stalls_is_asked_again(
    joined: Packed, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", 1.0)
    packed = open_at(server, tmp_path)
    server.inject("images.npy", fault, times=1)
    np.testing.assert_array_equal(packed.read(np.array([0, 1])), joined.images[:2])
    assert server.requests["/cells/shard-00001/images.npy"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", [stall_before, stall_within])
def test_a_store_that_always_stalls(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", 1.0)
    packed = open_at(server, tmp_path)
    server.inject("images.npy", fault)
    reason = "(no byte has come in 1 s|cannot be fetched .*Timeout.*)"
    with pytest.raises(FetchError, match=rf"shard-00001/images\.npy: {reason} \(tried 4 times\); check"):
        packed.read(np.array([0]))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (break_off, r"cannot be fetched \(ClientPayloadError"),
        (cut_short, r"broke off after [\d,]+ of [\d,]+ bytes"),
        (answer(500), "the server answers 500"),
        (wrong_bytes, r"has other bytes than were packed \(its checksum differs\)"),
        (endless, "has more than the [0-9,]+ bytes that were packed"),
    ],
)
def test_a_fault_that_stays(server: Server, tmp_path: Path, fault: Fault, reason: str) -> None:
    packed = open_at(server, tmp_path)
    server.inject("shard-00007/images.npy", fault)
    end = r" \(tried 4 times\); check the address and the network, then repeat the command to continue$"
    with pytest.raises(FetchError, match=rf"cells/shard-00007/images\.npy: ({reason}).*{end}") as found:
        packed.read(np.arange(100))
    assert "\n" not in str(found.value) and server.requests["/cells/shard-00007/images.npy"] == 4
    server.faults.clear()
    assert len(packed.read(np.arange(100))) == 100


@pytest.mark.parametrize(
    ("code", "reason"), [(404, "there is no such file"), (403, "the store denies access")]
)
def test_what_another_attempt_does_not_mend(server: Server, tmp_path: Path, code: int, reason: str) -> None:
    server.inject("pack.json", answer(code))
    with pytest.raises(FetchError, match=rf"cells/pack\.json: {reason}; check the address"):
        open_at(server, tmp_path)
    assert server.requests["/cells/pack.json"] == 1


def test_no_server_and_no_such_kind(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"http://127.0.0.1:1/cells/pack.json: cannot be fetched .*tried 4"):
        open_remote("http://127.0.0.1:1/cells", tmp_path, cache_gb=1.0)
    with pytest.raises(FetchError, match=r"nosuch://x: fsspec knows no addresses that begin with nosuch://"):
        Store("nosuch://x")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(FetchError, match=r"needs the package s3fs; install it \(pip install fsspec s3fs\)"):
        Store("s3://bucket/cells")


# ---- The cache


def limit_of(joined: Packed, num_shards: float) -> float:
    return joined.shards[0].bytes * num_shards / 1e9


def test_the_cache_is_bounded_and_keeps_what_was_used_last(
    joined: Packed, server: Server, tmp_path: Path
) -> None:
    packed = open_at(server, tmp_path, cache_gb=limit_of(joined, 16.5))
    for row in range(0, 100, 5):
        packed.read(np.array([row]))
        assert len(cached(tmp_path)) <= 16
        time.sleep(0.002)
    kept = set(cached(tmp_path))
    assert kept == {f"{shard.blake2b}.npy" for shard in joined.shards[-16:]}
    np.testing.assert_array_equal(packed.images, joined.images)


def test_a_cache_that_cannot_hold_two_windows_is_refused(
    joined: Packed, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"data.cache_gb: .* do not hold 16 shards of .*; set data.cache_gb="
    ):
        open_at(server, tmp_path, cache_gb=limit_of(joined, 15.5))


def test_damage_in_the_cache_is_fetched_again(joined: Packed, server: Server, tmp_path: Path) -> None:
    open_at(server, tmp_path).read(np.arange(100))
    for number, name in enumerate(cached(tmp_path)):
        path = tmp_path / "remote" / "shards" / name
        if number % 3 == 0:
            os.truncate(path, 300)
        else:
            content = bytearray(path.read_bytes())
            content[2 if number % 3 == 1 else 500] ^= 0xFF
            path.write_bytes(content)
    np.testing.assert_array_equal(open_at(server, tmp_path).images, joined.images)


def test_processes_that_share_a_small_cache(joined: Packed, server: Server, tmp_path: Path) -> None:
    """Each reads all images in an order of its own, while the others delete what it has fetched."""
    rng = np.random.default_rng(0)
    server.inject("images.npy", slow, times=10)

    def read(rows: np.ndarray) -> bool:
        packed = open_at(server, tmp_path, cache_gb=limit_of(joined, 16.5))
        found = np.concatenate([packed.read(rows[first : first + 4]) for first in range(0, 100, 4)])
        return bool((found == joined.images[rows]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, [rng.permutation(100) for _ in range(4)]))
    assert len(cached(tmp_path)) <= 20


def test_two_readers_fetch_a_shard_once(joined: Packed, server: Server, tmp_path: Path) -> None:
    server.inject("shard-00001/images.npy", slow)
    packs = [open_at(server, tmp_path) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda packed: packed.read(np.array([0])), packs))
    assert server.requests["/cells/shard-00001/images.npy"] == 1


def test_an_index_that_changes_is_fetched_anew(joined: Packed, tmp_path: Path) -> None:
    shutil.copytree(joined.folder, tmp_path / "web" / "cells")
    with serve(tmp_path / "web") as server:
        open_at(server, tmp_path)
        shutil.rmtree(tmp_path / "web" / "cells")
        other = pack_in_parts(Images(draw(50)), tmp_path / "web" / "cells", 2)
        found = open_at(server, tmp_path)
        assert found.fingerprint == other.fingerprint
        np.testing.assert_array_equal(found.images, other.images)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 2}', b'{"format": 2, "files": 3}', b"x"])
def test_what_is_no_pack(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "pack.json").write_bytes(content)
    with serve(tmp_path) as server, pytest.raises(DataError, match=r"/cells"):
        open_at(server, tmp_path)


# ---- Training


def batches_of(packed: Packed, *, first_step: int = 0) -> tuple[Plan, Batches]:
    import torch

    config = load_config(None, ["trainer.batch_size=10", "trainer.max_epochs=2"], preset="classic")
    plan = Plan.of(config, num_images=100, shards=tuple(shard.num_images for shard in packed.shards))
    return plan, Batches(
        packed, plan, rows=slice(0, 10), device=torch.device("cpu"), first_step=first_step, memory="map"
    )


@pytest.mark.parametrize("first_step", [0, 7])
def test_batches_in_windows(joined: Packed, server: Server, tmp_path: Path, first_step: int) -> None:
    packed = open_at(server, tmp_path, cache_gb=limit_of(joined, 16.5))
    plan, batches = batches_of(packed, first_step=first_step)
    with batches:
        for step, batch in enumerate(batches, start=first_step):
            rows = plan.indices(step)
            np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), joined.images[rows])
            assert len(cached(tmp_path)) <= 2 * WINDOW
    assert step == plan.total_steps - 1
    requests = [server.requests[f"/cells/{shard.path}"] for shard in joined.shards]
    assert max(requests) <= 3  # at most once an epoch, and once more for the start of the next one


def test_leaving_a_training_does_not_wait_for_a_stalled_store(
    joined: Packed, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", 25.0)
    packed = open_at(server, tmp_path)
    server.inject("images.npy", stall_within)
    _, batches = batches_of(packed)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), batches:
        waiting = ThreadPoolExecutor(1).submit(next, batches)
        while not any(path.endswith("images.npy") for path in server.requests):
            assert time.monotonic() - start < 20.0
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 20.0  # less than the time-out
    assert isinstance(waiting.exception(), FetchError | CancelledError)
    server.faults.clear()
    np.testing.assert_array_equal(packed.read(np.array([0])), joined.images[:1])


def test_looking_at_some_images_fetches_few_shards(joined: Packed, server: Server, tmp_path: Path) -> None:
    source = PackedSource("cells", open_at(server, tmp_path))
    chosen = source.sample(20)
    assert len(chosen) == 20 and [source.item(index).shape for index in chosen[:1]] == [(10, 10, 3)]
    for index in chosen:
        np.testing.assert_array_equal(source.item(index), joined.images[index])
    assert len(cached(tmp_path)) == WINDOW and len(source.sample(10**6)) == 5 * WINDOW


def test_settings_must_be_those_of_the_pack(joined: Packed, server: Server, tmp_path: Path) -> None:
    address = f"{server.address}/cells"
    overrides = [f"data.source={address}", f"data.packs={tmp_path}", "data.alpha=auto"]
    config = load_config(None, [*overrides, "data.stored_px=null"], preset="classic")
    assert len(open_images(config, tmp_path / "run", console=None)) == 100
    for setting in ("data.channels=rgb", "data.geometry=scale", "data.alpha=keep", "data.stored_px=96"):
        changed = load_config(None, [*overrides, "data.stored_px=null", setting], preset="classic")
        with pytest.raises(ConfigError, match=rf"{setting.partition('=')[0]}: is .* were packed with data"):
            open_images(changed, tmp_path / "run", console=None)
    assert remote.settings_of(address)["data.stored_px"] == 10
