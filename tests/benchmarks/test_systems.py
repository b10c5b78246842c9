"""Every system really trains: a step changes the online and the target weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import settings
import systems
import torch
from PIL import Image

import pictures

TINY = {name: setting.sized(batch=None, tiny=True) for name, setting in settings.SETTINGS.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.make_files(TINY["b"], tmp_path_factory.mktemp("work"))


@pytest.mark.filterwarnings("ignore")  # of the peers' packages
@pytest.mark.parametrize("name", systems.NAMES)
def test_a_step_changes_online_and_target_weights(name: str, files: Path) -> None:
    try:
        load = systems.load(name)
    except ImportError as error:
        pytest.skip(f"not importable: {error}")
    job = systems.Job(name, TINY["b"], "cpu", 1, 0, files, files.parent / "packs")
    system = load(job)
    system.prepare()
    system.step()  # lightly's target moves before its online network
    before = [[weight.detach().clone() for weight in weights] for weights in system.weights()]
    system.step()
    after = system.weights()
    assert [len(weights) for weights in before] == [len(weights) for weights in after]
    for old, new in zip(before, after, strict=True):
        changed = [not torch.equal(one, two) for one, two in zip(old, new, strict=True)]
        assert sum(changed) > 0.9 * len(changed)  # a bias before a norm may rest
    # The average is slow: the target has moved less than the online network.
    moves = [
        sum(float((one - two).square().sum()) for one, two in zip(old, new, strict=True))
        for old, new in zip(before, after, strict=True)
    ]
    assert 0.0 < moves[1] < 0.1 * moves[0]


@pytest.mark.parametrize(("name", "bf16"), [("ours", None), ("lightly", False), ("lightly-bf16", True)])
def test_precision_goes_by_the_name(name: str, bf16: bool | None) -> None:
    assert systems.Job(name, TINY["a"], "cpu", 1, 0, Path("files"), Path("packs")).bf16 is bf16


def test_a_job_survives_the_command_line() -> None:
    job = systems.Job("ours", TINY["c"], "cpu", 1, 2, Path("files"), Path("packs"), ("data.memory=map",))
    assert systems.Job.from_json(job.to_json()) == job


def test_all_networks_have_the_same_shapes() -> None:
    from systems import ours

    for setting in (settings.SETTINGS["a"], settings.SETTINGS["b"]):
        config = ours.configure(systems.Job("ours", setting, "cpu", 1, 0, Path("files"), Path("packs")))
        from byol.method.networks import Byol

        encoder = Byol.of(config, channels=3, seed_key=0).online.encoder
        other = systems.build_torchvision(setting)
        shapes = {name: weight.shape for name, weight in other.named_parameters() if "fc" not in name}
        assert shapes == {name: weight.shape for name, weight in encoder.named_parameters()}


def test_pictures_are_the_same_every_time_and_neither_flat_nor_noise() -> None:
    picture = pictures.draw_picture(64, 96, seed=3)
    assert picture.shape == (64, 96, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, pictures.draw_picture(64, 96, seed=3))
    assert not np.array_equal(picture, pictures.draw_picture(64, 96, seed=4))
    values = picture.astype(float)
    neighbours = np.abs(np.diff(values, axis=1)).mean()
    assert values.std() > 20 and 1 < neighbours < 0.5 * values.std()


def test_files_are_made_once(tmp_path: Path) -> None:
    setting = replace(TINY["c"], num_files=3)
    folder = pictures.make_files(setting, tmp_path)
    made = sorted((folder / "images").iterdir())
    assert len(made) == 3
    with Image.open(made[0]) as image:
        assert image.size == (setting.file_width, setting.file_height)
    stamps = [path.stat().st_mtime_ns for path in made]
    assert pictures.make_files(setting, tmp_path) == folder
    assert [path.stat().st_mtime_ns for path in made] == stamps
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
