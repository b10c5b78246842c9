"""The unit and an example of every setting, for the JSON schema and the settings page of the documentation.

A test checks that every setting is here and that every example is accepted.
"""

from collections.abc import Mapping

_PX, _SHARE, _PROBABILITY, _COUNT = "px", "fraction, 0 to 1", "probability, 0 to 1", "count"

# Key: unit ("" if there is none), and an example as typed after the equals sign. "view": both views.
EXAMPLES: Mapping[str, tuple[str, str]] = {
    "preset": ("", "paper"),
    "network.name": ("", "resnet18"),
    "network.stem": ("", "standard"),
    "network.projection_head.mlp_hidden_size": ("units", "4096"),
    "network.projection_head.projection_size": ("units", "256"),
    "network.fine_tune_from": ("", "runs/earlier"),
    "network.warm_heads": ("steps", "200"),
    "network.encoder_lr": (_SHARE, "0.1"),
    "data_transforms.domain": ("", "microscopy"),
    "data_transforms.s": ("factor", "0.5"),
    "data_transforms.input_shape": (_PX, "[96,96,null]"),
    "data_transforms.whole_px": (_PX, "128"),
    "data_transforms.whole_mirrored": ("", "false"),
    "data_transforms.target_view": ("", "other"),
    "data_transforms.view.crop_area": ("fraction of the area, 0 to 1", "[0.5,1]"),
    "data_transforms.view.crop_aspect": ("width / height", "[1,1]"),
    "data_transforms.view.flip": (_PROBABILITY, "0"),
    "data_transforms.view.vertical_flip": (_PROBABILITY, "0.5"),
    "data_transforms.view.turn": (_PROBABILITY, "0.75"),
    "data_transforms.view.rotation": ("degrees", "180"),
    "data_transforms.view.jitter": (_PROBABILITY, "0.5"),
    "data_transforms.view.brightness": ("factor", "0.1"),
    "data_transforms.view.contrast": ("factor", "0.2"),
    "data_transforms.view.saturation": ("factor", "0"),
    "data_transforms.view.hue": ("turns of the colour circle", "0"),
    "data_transforms.view.grey": (_PROBABILITY, "0"),
    "data_transforms.view.blur": (_PROBABILITY, "0.3"),
    "data_transforms.view.blur_sigma": ("px of a 224 px view", "[0.1,1]"),
    "data_transforms.view.solarize": (_PROBABILITY, "0"),
    "data_transforms.view.invert": (_PROBABILITY, "0.5"),
    "data_transforms.view.gamma": ("exponent", "0.3"),
    "data_transforms.view.noise": ("fraction of the value range", "0.02"),
    "data_transforms.view.channel_drop": (_PROBABILITY, "0.3"),
    "data.source": ("", "IMAGES/"),
    "data.root": ("", "datasets"),
    "data.split": ("", "train"),
    "data.download": ("", "true"),
    "data.channels": ("", "[0,2]"),
    "data.alpha": ("", "keep"),
    "data.clip": (_SHARE, "0"),
    "data.stored_px": (_PX, "128"),
    "data.geometry": ("", "scale"),
    "data.layout": ("", "chw"),
    "data.packs": ("", "/scratch/packs"),
    "data.cache_gb": ("GB", "200"),
    "data.memory": ("", "map"),
    "data.max_bad": (_SHARE, "0.05"),
    "data.skip_unreadable": ("", "true"),
    "trainer.batch_size": ("images", "256"),
    "trainer.accumulation_steps": ("micro-batches", "4"),
    "trainer.m": (_SHARE, "0.996"),
    "trainer.m_schedule": ("", "constant"),
    "trainer.vicreg_weight": ("", "0"),
    "trainer.max_epochs": ("epochs", "100"),
    "trainer.max_hours": ("hours", "2"),
    "trainer.checkpoint_interval": ("steps", "500"),
    "trainer.num_workers": ("threads", "8"),
    "trainer.num_threads": ("threads", "4"),
    "trainer.log_interval": ("steps", "50"),
    "trainer.health_interval": ("steps", "100"),
    "trainer.loggers": ("", "[tensorboard,wandb]"),
    "trainer.seed": ("", "1"),
    "trainer.device": ("", "cpu"),
    "trainer.precision": ("", "fp32"),
    "trainer.convolution": ("", "library"),
    "optimizer.name": ("", "sgd"),
    "optimizer.params.lr": ("", "0.05"),
    "optimizer.params.momentum": (_SHARE, "0.9"),
    "optimizer.params.weight_decay": ("", "0.0001"),
    "optimizer.schedule": ("", "constant"),
    "optimizer.warmup_epochs": ("epochs", "5"),
    "optimizer.scale_lr": ("", "false"),
    "optimizer.derive": ("", "default"),
    "evaluation.train": ("", "labelled/train"),
    "evaluation.test": ("", "labelled/test"),
    "evaluation.labels": ("", "cells.csv"),
    "evaluation.max_unmatched": (_SHARE, "1"),
    "evaluation.weights": ("", "timm:resnet18"),
    "evaluation.folds": (_COUNT, "5"),
    "evaluation.groups": ("", "plate"),
    "evaluation.sgd_above": ("images", "50000"),
    "evaluation.num_draws": (_COUNT, "10"),
    "evaluation.num_centroids": (_COUNT, "1600"),
    "evaluation.seed": ("", "1"),
    "evaluation.num_bootstrap": (_COUNT, "10000"),
}


def unit_of(key: str) -> str:
    """Return the unit of a setting by its dotted key, such as "px"; "" if it has none."""
    return EXAMPLES[_short(key)][0]


def example_of(key: str) -> str:
    """Return an example value for a setting by its dotted key, as typed after the equals sign."""
    return EXAMPLES[_short(key)][1]


def _short(key: str) -> str:
    for view in ("view1", "view2"):
        key = key.replace(f"data_transforms.{view}.", "data_transforms.view.")
    return key
