"""The export matrix: each export gives byol's features in the program that it is for, without byol there."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from byol.encoder.encoder import Encoder, load
from byol.exporting import timm_folder
from byol.exporting.export import export
from byol.exporting.network import make_plain
from byol.exporting.parity import TOLERANCE, draw_images, find_difference
from exports import Case

CASES = (
    Case("resnet10t", "strided", 3, 8, 32, 37, 48),  # the default on a CPU for small images
    Case("resnet10t", "standard", 1, 16, 64, 74, 88),  # and for larger ones
    Case("resnet10t", "small", 5, 8, 32, 37),
    Case("resnet18", "standard", 3, 8, 64, 64),
    Case("resnet18", "standard", 5, 16, 64, 64, 88),
    Case("resnet50", "standard", 3, 16, 64, 64),
    Case("convnext_atto", "standard", 3, 8, 64, 64),
    Case("convnext_atto", "standard", 5, 16, 64, 74),
    Case("vit_tiny_patch16_224", "standard", 3, 8, 64, 64),
    Case("vit_tiny_patch16_224", "standard", 1, 16, 64, 74),
)
FORMATS = {"timm": "timm", "transformers": "timm", "onnxruntime": "onnx", "torch": "torch"}  # by the program
NUM, HEIGHT, WIDTH = 3, 90, 70  # of the images
WRONG = "wrong"  # the case of which a plain timm folder is written without looking at its stem

pytestmark = pytest.mark.slow


def is_for_timm(case: Case) -> bool:
    return case.stem == "standard"


def has_file(case: Case) -> bool:
    """Whether timm's transform of an image file must give byol's features."""
    return case.channels == 3 and case.bits == 8 and case.stored_px == case.view_px and case.whole_px is None


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {case: case.save(folder) for case in CASES}


def open_all(program: str, encoders: dict[Case, Path], folder: Path) -> dict[Case, Path]:
    """A folder for each case: its export, the inputs, and what the program made of them."""
    if program == "onnxruntime" and find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    if program == "transformers":
        pytest.importorskip("transformers")
    places = {}
    for case, source in encoders.items():
        if FORMATS[program] == "timm" and not is_for_timm(case):
            continue
        place = places[case] = folder / str(case)
        export(source, place / "export", format=FORMATS[program])
        write_inputs(place, load(source, device="cpu"), with_file=has_file(case))
    run_consumer(program, list(places.values()))
    return places


def write_inputs(place: Path, encoder: Encoder, *, with_file: bool) -> None:
    images = draw_images(encoder.spec, NUM, HEIGHT, WIDTH)
    np.save(place / "images.npy", images.numpy())
    spec = encoder.spec
    generator = torch.Generator().manual_seed(5)
    views = torch.randn(NUM, spec.channels, spec.seen_px, spec.seen_px, generator=generator)
    np.save(place / "views.npy", views.numpy())
    if with_file:
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(place / "image.png")


def run_consumer(program: str, places: list[Path]) -> None:
    """In a child process, whose path has no byol."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("consumers.py")), program, *map(str, places)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=places[0])
    assert done.returncode == 0, done.stderr[-3000:]


def list_found(place: Path, program: str, encoder: Encoder) -> dict[str, float]:
    """By the file of features, how far they are from byol's."""
    expected = {
        "images": encoder.embed(list(torch.from_numpy(np.load(place / "images.npy")))),
        "views": encoder.encode_views(torch.from_numpy(np.load(place / "views.npy"))).numpy(),
    }
    if (place / "image.png").exists():
        expected["file"] = expected["processor"] = encoder.embed(place / "image.png")
    return {
        path.stem: find_difference(np.load(path), expected[path.stem.partition("-")[2]])
        for path in place.glob(f"{program}-*.npy")
    }


@pytest.mark.parametrize("program", FORMATS)
def test_the_export_matrix(program: str, encoders: dict[Case, Path], tmp_path: Path) -> None:
    places = open_all(program, encoders, tmp_path)
    assert len(places) >= 8
    for case, place in places.items():
        found = list_found(place, program, load(encoders[case], device="cpu"))
        inputs = {"timm": 1, "transformers": 1, "onnxruntime": 1, "torch": 1}[program]
        inputs += {"timm": 1, "transformers": 2}.get(program, 0) * has_file(case)
        assert len(found) == inputs, (case, found)
        assert max(found.values()) <= TOLERANCE, (case, found)
        refusal = place / "transformers-refusal.txt"
        if program == "transformers" and case.bits == 16:
            assert "16-bit" in refusal.read_text() and "README.md" in refusal.read_text()


@pytest.mark.parametrize("stem", ["small", "strided"])
def test_the_matrix_notices_a_wrong_stem(stem: str, tmp_path: Path) -> None:
    """What a timm folder of such a stem would compute, were it not refused: nothing says that it is wrong."""
    case = Case("resnet10t", stem)
    encoder = load(case.save(tmp_path), device="cpu")
    place = tmp_path / WRONG
    (place / "export").mkdir(parents=True)
    timm_folder.write_timm(place / "export", make_plain(encoder), replace(encoder.spec, stem="standard"))
    write_inputs(place, encoder, with_file=False)
    run_consumer("timm", [place])
    (difference,) = list_found(place, "timm", encoder).values()
    assert difference > 100 * TOLERANCE
