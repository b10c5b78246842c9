"""Training with labels: which layer learns how fast, and what views keep."""

import pytest
import timm
import torchvision
from torch import nn

from byol.config import load_config
from byol.finetuning import supervised
from byol.finetuning.supervised import SYMMETRIES, mild


@pytest.mark.parametrize(
    "encoder",
    [
        timm.create_model("resnet18", num_classes=0),
        timm.create_model("test_vit", num_classes=0),
        torchvision.models.get_model("resnet18", weights=None),
    ],
    ids=["timm resnet", "timm vit", "torchvision"],
)
def test_first_layers_learn_slower_than_the_last(encoder: nn.Module) -> None:
    classifier = nn.Linear(8, 3)
    groups = list(supervised.make_parameter_groups(encoder, classifier, 0.5))
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    parameters = [*encoder.parameters(), *classifier.parameters()]
    assert scale.keys() == {id(p) for p in parameters} and sum(len(g["params"]) for g in groups) == len(scale)
    by_depth = [scale[id(parameter)] for parameter in parameters if parameter.ndim == 4]
    assert by_depth == sorted(by_depth) and by_depth[0] <= 0.25
    assert scale[id(classifier.weight)] == scale[id(classifier.bias)] == 1.0
    assert all(group["weight_decay"] == 0.0 for group in groups if group["params"][0].ndim == 1)
    assert {group["lr_scale"] for group in supervised.make_parameter_groups(encoder, classifier, 1.0)} == {
        1.0
    }


def test_views_keep_the_symmetries_alone() -> None:
    def of(domain: str) -> tuple[object, ...]:
        config = load_config(None, [f"data_transforms.domain={domain}"], preset="default")
        view = mild(config.data_transforms).view1
        assert {
            getattr(view, name) for name in ("jitter", "grey", "blur", "solarize", "invert", "gamma")
        } == {0}
        assert view.noise == view.channel_drop == 0.0
        before = config.data_transforms.view1
        assert all(getattr(view, name) == getattr(before, name) for name in SYMMETRIES if name != "crop_area")
        return view.crop_area, view.flip, view.vertical_flip, view.rotation

    assert of("photo") == ((0.5, 1.0), 0.5, 0.0, 0.0)
    assert of("microscopy") == ((1.0, 1.0), 0.5, 0.5, 180.0)  # size matters there
