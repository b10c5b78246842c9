"""Image files for the benchmarks: the same ones every time, with statistics like photographs'.

Each is a smooth random field (power spectrum 1 / f^2 per channel, channels correlated) with a few shapes of
sharp edges on it, so that a JPEG decoder finds the usual mixture of flat and busy blocks.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from settings import Setting


def make_files(setting: Setting, work: Path) -> Path:
    """A folder with the setting's files, in one class folder as torchvision wants it; made if missing."""
    size = f"{setting.file_width}x{setting.file_height}"
    folder = work / f"files-{size}-{setting.num_files}{setting.file_suffix.replace('.', '-')}"
    if folder.is_dir():
        return folder
    unfinished = work / f"{folder.name}.{os.getpid()}"
    (unfinished / "images").mkdir(parents=True)
    for number in range(setting.num_files):
        pixels = draw_picture(setting.file_height, setting.file_width, seed=number)
        path = unfinished / "images" / f"{number:06d}{setting.file_suffix}"
        Image.fromarray(pixels).save(path, **({"quality": 90} if setting.file_suffix == ".jpg" else {}))
    unfinished.rename(folder)
    return folder


def make_folders(setting: Setting, work: Path, *, tiny: bool) -> tuple[Path, Path]:
    """The folder with the setting's files, and that where ours packs them; `work` is made if missing."""
    work.mkdir(parents=True, exist_ok=True)
    return make_files(setting, work), work / f"packs-{setting.name}{'-tiny' if tiny else ''}"


def draw_picture(height: int, width: int, *, seed: int) -> np.ndarray:
    """(height, width, 3) uint8, a function of its arguments."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1.0 / np.maximum(frequency, 1.0 / max(height, width))
    noise = random.standard_normal((3, height, width))
    fields = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(height, width))
    fields /= fields.std()
    picture = 0.8 * fields[:1] + 0.4 * fields  # grey dominates, as in photographs
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(random.integers(2, 7)):
        centre_y, centre_x = random.uniform(0, height), random.uniform(0, width)
        radius_y, radius_x = random.uniform(0.05, 0.4, 2) * (height, width)
        inside = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1.0
        picture += inside * random.normal(0.0, 0.8, (3, 1, 1))
    return (128 + 48 * picture).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
