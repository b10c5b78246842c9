"""From a file to a view: a circle stays a circle in an image of any shape; on a canvas it keeps its size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from byol.config import Config, load_config
from byol.data.pack.images import open_images
from byol.method.views import make_views

VIEW_PX = 64
# The whole image, or most of it; nothing but crops.
PLAIN = {"crop_area": "[0.25,1.0]", "crop_aspect": "[1.0,1.0]", "flip": "0", "jitter": "0", "grey": "0"} | {
    "blur": "0",
    "solarize": "0",
}


def configure(folder: Path, *overrides: str, **changes: str) -> Config:
    views = [
        f"data_transforms.{view}.{key}={value}"
        for view in ("view1", "view2")
        for key, value in (PLAIN | changes).items()
    ]
    shape = f"data_transforms.input_shape=[{VIEW_PX},{VIEW_PX},1]"
    return load_config(None, [f"data.source={folder}", shape, *views, *overrides], preset="default")


def write_disc(folder: Path, height: int, width: int, *, radius: float) -> None:
    """White on black, in the middle of the image."""
    rows, columns = np.indices((height, width))
    inside = (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2 < radius**2
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(folder / f"{height}x{width}.png")


def views_of(config: Config, folder: Path, *, times: int = 1) -> Tensor:
    """The first view of each image, from 0 to 1; `times` of each."""
    packed = open_images(config, folder / "runs" / "a", console=None)
    rows = np.arange(len(packed)).repeat(times)
    images = torch.from_numpy(packed.read(rows)).permute(0, 3, 1, 2)
    sizes = torch.from_numpy(packed.sizes[rows].astype(np.float32))
    view, _ = make_views(
        images, sizes, config.data_transforms, key=0, rows=slice(0, len(rows)), pixels=packed.pixels
    )
    return (view * packed.pixels.std[0] + packed.pixels.mean[0])[:, 0]


def extent(image: Tensor) -> tuple[float, float]:
    """Height and width of what is white, px: the sums along the middle column and row of the disc."""
    return float(image.sum(0).max()), float(image.sum(1).max())


@pytest.mark.parametrize("shape", [(60, 180), (180, 60)])
def test_a_circle_in_a_squashed_image_is_a_circle_in_the_view(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_disc(tmp_path / "set", *shape, radius=12.0)
    config = configure(tmp_path / "set", crop_area="[0.2,0.33]")  # of 60 x 180 px: 46 to 60 px
    packed = open_images(config, tmp_path / "runs" / "a", console=None)
    assert packed.sizes.tolist() == [list(shape)] and packed.stored_px == min(74, max(shape))
    stored = extent(torch.from_numpy(packed.images[0, :, :, 0] / 255.0))
    assert abs(np.log(stored[0] / stored[1])) > 1  # no circle as it is stored
    ratios = []
    for view in views_of(config, tmp_path, times=64):
        edge = torch.cat([view[0], view[-1], view[:, 0], view[:, -1]])
        if view.max() > 0.9 and edge.max() < 0.01:  # the crop holds all of the disc
            height, width = extent(view)
            ratios.append(height / width)
    assert len(ratios) >= 5 and np.abs(np.log(ratios)).max() < 0.1


def test_on_a_canvas_objects_of_one_size_have_one_size(tmp_path: Path) -> None:
    """The same disc in images of other shapes; squashed, it would be as large as each image lets it be."""
    for shape in ((21, 21), (30, 60), (74, 40), (74, 74)):
        write_disc(tmp_path / "set", *shape, radius=9.0)
    whole = {"crop_area": "[1.0,1.0]"}
    on_canvas = configure(tmp_path / "set", "data.geometry=scale", **whole)
    diameters = [extent(view) for view in views_of(on_canvas, tmp_path)]
    expected = 18 * VIEW_PX / 74
    assert np.abs(np.array(diameters) - expected).max() < 1.0
    squashed = [extent(view) for view in views_of(configure(tmp_path / "set", **whole), tmp_path)]
    assert np.abs(np.array(squashed) - expected).max() > 20
