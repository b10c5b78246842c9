"""Commands on a pack in object storage, which is a local web server here."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from byol.cli.main import main
from byol.config import load_config
from command_line import TINY, Capture, fail, succeed, write_images
from web_store import Server, answer, serve

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `few` (3 shards) and `many` (10 shards) of the same images, and `images` themselves."""
    folder = tmp_path_factory.mktemp("web")
    images = write_images(folder / "images")
    for name, count in (("few", 3), ("many", 10)):
        packs = folder / f"{name}-packs"
        for number in range(1, count + 1):
            assert main(["pack", str(images), f"--part={number}/{count}", "-o", str(packs), *TINY]) == 0
        assert main(["pack", str(images), "-o", str(packs), *TINY]) == 0
        (pack,) = packs.glob("folder-*")
        pack.rename(folder / name)
    return folder


@pytest.fixture
def server(web: Path) -> Iterator[Server]:
    with serve(web) as server:
        yield server


def weights(run: str) -> bytes:
    return Path(run, "encoder.safetensors").read_bytes()


@pytest.mark.slow
def test_a_training_on_few_shards_is_that_on_one_file(
    capsys: Capture, web: Path, server: Server, place: Path
) -> None:
    succeed(capsys, "train", web / "images", "-o", "one/run", *TINY)
    said = succeed(capsys, "train", f"{server.address}/few", "-o", "far/run", *TINY)
    assert (
        f"20 packed images in 3 shards at {server.address}/few; byol keeps at most 50 GB of them in " in said
    )
    assert weights("one/run") == weights("far/run")
    said = succeed(capsys, "eval", "far/run")
    assert "byol online" in said
    succeed(capsys, "report", "far/run")
    assert Path("far/run/report.html").is_file()


@pytest.mark.slow
def test_a_run_in_windows_is_killed_moved_and_continued(
    capsys: Capture, web: Path, server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{server.address}/many"
    settings = [*TINY, "trainer.checkpoint_interval=1", "data.packs=packs"]
    succeed(capsys, "train", address, "-o", "whole", *settings)
    for place_now in (address, f"file://{web}/many"):  # a copy of the pack at another address
        shutil.copytree("whole", "part")
        newest = max(Path("part/checkpoints").glob("*.pt"))
        newest.unlink()
        said = succeed(capsys, "train", place_now, "-o", "part", *settings)
        assert ("holds the same images as" in said) == (place_now != address)
        assert weights("part") == weights("whole")
        assert load_config(Path("part/config.yaml"), [], preset=None).data.source == place_now
        shutil.rmtree("part")


def test_what_is_refused(capsys: Capture, web: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from byol.data.pack import fetching

    address = f"{server.address}/many"
    assert "is packed already" in fail(capsys, "pack", address, *TINY)
    assert "only byol train, run, eval, report and explore read images at an address" in fail(
        capsys, "check", address
    )
    said = fail(capsys, "train", address, "-o", "run", *TINY, "data.channels=grey", code=2)
    assert said.startswith('data.channels: is "grey", but the images of') or "1 channel" in said
    said = fail(capsys, "train", address, "-o", "run", *TINY, "data.cache_gb=0.000001", code=2)
    assert "data.cache_gb: 1e-06 GB do not hold 16 shards of" in said
    monkeypatch.setattr(fetching, "PAUSES_S", (0.0,))
    server.inject("pack.json", answer(500))
    said = fail(capsys, "train", address, "-o", "run", *TINY)
    assert (
        "/many/pack.json: the server answers 500 (tried 2 times); check the address and the network" in said
    )
    assert fail(capsys, "train", "nosuch://x", "-o", "run").startswith(
        "nosuch://x: fsspec knows no addresses"
    )


@pytest.mark.slow
def test_what_byol_would_choose_for_packed_images(capsys: Capture, server: Server) -> None:
    said = succeed(capsys, "train", f"{server.address}/many", "-n", "-o", "run", "trainer.max_epochs=2")
    assert "looking at the images" in said and "view size 32 px" in said and "batch size 8" in said
