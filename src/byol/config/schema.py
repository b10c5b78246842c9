"""Every setting of a run: name, type, bounds, unit and a line of documentation. Presets are the defaults.

Strict: an integer may stand for a number, nothing else is converted. `config.py` reads and writes the files.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MIN_VIEW_PX, MAX_VIEW_PX = 8, 4096
MAX_HUE = 0.5  # turns: every colour is reached

DeviceSetting = Literal["auto", "cpu", "cuda", "mps", "xpu"]

# Settings that may be left open, and the value that says so; `choices.py` chooses from images and machine.
OPEN: dict[str, str | None] = {
    "network.name": "auto",
    "data_transforms.domain": "auto",
    "data_transforms.input_shape": None,
    "trainer.batch_size": None,
    "trainer.accumulation_steps": None,
    "trainer.max_epochs": None,
}


class Section(BaseModel):
    """A frozen group of settings; unknown keys are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


# ---- Kinds of values


def read_tuple(value: Any) -> Any:
    """YAML has no tuples: a list, or the text "(96,96,3)", is meant."""
    if isinstance(value, str) and value.startswith("(") and value.endswith(")"):
        parts = value[1:-1].removesuffix(",").split(",")
        return tuple(_read_number(part.strip()) for part in parts)
    return tuple(value) if isinstance(value, list) else value


def _read_number(text: str) -> int | float | str | None:
    if text in ("None", "none", "null", "~"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("[low, high] with low not above high")
    return value


def _check_shape(value: tuple[int, int, int | None]) -> tuple[int, int, int | None]:
    height, width, _ = value
    if height != width or not MIN_VIEW_PX <= height <= MAX_VIEW_PX:
        raise ValueError(f"a square from {MIN_VIEW_PX} to {MAX_VIEW_PX} px, such as [96, 96, 3]")
    return value


def _check_distinct(value: list[int]) -> list[int]:
    if len(set(value)) != len(value):
        raise ValueError("channel numbers, each once")
    return value


def _check_once(value: list[str]) -> list[str]:
    if len(set(value)) != len(value):
        raise ValueError("loggers, each once")
    return value


Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=2)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
_Area = Annotated[float, Field(gt=0, le=1)]
_Aspect = Annotated[float, Field(ge=0.1, le=10)]
_Sigma = Annotated[float, Field(gt=0, le=50)]
_AsTuple, _InOrder = BeforeValidator(read_tuple), AfterValidator(_check_order)
AreaRange = Annotated[tuple[_Area, _Area], _AsTuple, _InOrder]
AspectRange = Annotated[tuple[_Aspect, _Aspect], _AsTuple, _InOrder]
SigmaRange = Annotated[tuple[_Sigma, _Sigma], _AsTuple, _InOrder]
Shape = Annotated[tuple[int, int, Annotated[int, Field(ge=1)] | None], _AsTuple, AfterValidator(_check_shape)]
ChannelList = Annotated[
    list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_check_distinct)
]


LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


# ---- Sections


class ProjectionHead(Section):
    """Projector and predictor: linear, BatchNorm, ReLU, linear."""

    mlp_hidden_size: int = Field(ge=1, le=65536, description="Width of the hidden layer, units (paper 4096).")
    projection_size: int = Field(ge=2, le=65536, description="Size of the output, units (paper 256).")


class NetworkConfig(Section):
    """The encoder and the heads on top of it."""

    name: Text = Field(description="Encoder: the name of a timm or torchvision model; auto: by the device.")
    stem: Literal["auto", "standard", "small", "strided"] = Field(
        description="First layers of a ResNet. standard: the model's own; small: 3x3 stride 1, no max-pool; "
        "strided: 3x3 stride 2, no max-pool; auto: small for views of at most 64 px, else standard; with "
        "an automatic name, chosen with it."
    )
    projection_head: ProjectionHead = Field(description="Sizes of projector and predictor.")
    fine_tune_from: Text | None = Field(
        description="Weights to start from: folder of an earlier run, file of weights (FILE:PREFIX for one "
        "of several encoders in it), or timm:MODEL if on this machine; null: random."
    )
    warm_heads: Annotated[int, Field(ge=0)] | None = Field(
        description="First steps, in which the heads learn and the encoder stays; null: 5 % of the run, at "
        "most 500, for new heads on a trained encoder, else 0."
    )
    encoder_lr: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="Learning rate of the encoder, share of the heads'; null: 0.3 for new heads on a trained "
        "encoder, else 1."
    )


class View(Section):
    """One distribution of random views. Probabilities are 0..1 and drawn for each image."""

    crop_area: AreaRange = Field(description="Area of the crop, share of the image, [low, high].")
    crop_aspect: AspectRange = Field(description="Width / height of the crop, [low, high].")
    flip: Probability = Field(description="Probability of a left-right flip.")
    vertical_flip: Probability = Field(description="Probability of an up-down flip.")
    turn: Probability = Field(description="Probability of a quarter turn: by 90, 180 or 270 degrees, exact.")
    rotation: float = Field(
        ge=0, le=180, description="Rotation, degrees, uniform in [-rotation, rotation]; edges are reflected."
    )
    jitter: Probability = Field(
        description="Probability of the jitter: brightness, contrast, saturation, hue, gamma."
    )
    brightness: Strength = Field(description="Brightness factor within 1 +- this, times data_transforms.s.")
    contrast: Strength = Field(description="Contrast factor within 1 +- this, times data_transforms.s.")
    saturation: Strength = Field(description="Saturation factor within 1 +- this, times data_transforms.s.")
    hue: float = Field(
        ge=0, le=MAX_HUE, description="Hue shift, turns, within +- this, times data_transforms.s."
    )
    grey: Probability = Field(description="Probability that the view loses its colour.")
    blur: Probability = Field(description="Probability of a Gaussian blur.")
    blur_sigma: SigmaRange = Field(
        description="Sigma of the blur, pixels of a 224 px view (scaled with the view), [low, high]."
    )
    solarize: Probability = Field(description="Probability that values above one half are inverted.")
    invert: Probability = Field(description="Probability that all values are inverted.")
    gamma: Strength = Field(
        description="x ** exp(u), u uniform in [-gamma, gamma], with jitter's probability."
    )
    noise: float = Field(
        ge=0, le=1, description="Gaussian noise, its std uniform in [0, noise], units of full scale."
    )
    channel_drop: Probability = Field(description="Probability that one channel is replaced by its mean.")


class DataTransforms(Section):
    """How two views are made of each image."""

    domain: Literal["auto", "photo", "grey", "microscopy", "satellite", "medical", "industrial"] | None = (
        Field(
            description="Table of view numbers for a kind of images; auto: by the images; null: the preset's."
        )
    )
    s: float = Field(
        ge=0, le=10, description="Factor on brightness, contrast, saturation and hue of both views."
    )
    input_shape: Shape | None = Field(
        description="Height, width (pixels, equal) and channels of a view; channels null: as the data has. "
        "null: the side is chosen from the images and the device."
    )
    whole_px: Annotated[int, Field(ge=MIN_VIEW_PX, le=MAX_VIEW_PX)] | Literal["auto"] | None = Field(
        description="Side at which the trained encoder sees whole images, pixels; null: that of a view; "
        "auto: so large that things look as large as in the mean crop, for models that take any size."
    )
    view1: View = Field(description="Distribution of the first view.")
    view2: View = Field(description="Distribution of the second view.")

    @property
    def view_px(self) -> int:
        """Side of a view, pixels; it must have been chosen."""
        return _known(self.input_shape)[0]


class DataConfig(Section):
    """The images."""

    source: Text = Field(
        description="stl10, cifar10, cifar100, motifs, or a path: folder, .txt or .csv list, .npy array."
    )
    root: Text = Field(description="Folder of the official files of stl10, cifar10 and cifar100.")
    split: Text | None = Field(
        description="Part of the source to train on; null: its usual one (stl10: train+unlabeled)."
    )
    download: bool = Field(description="Whether missing official files are downloaded into data.root.")
    channels: Literal["grey", "rgb"] | ChannelList | None = Field(
        description="Channels to use: grey, rgb or their numbers from 0; null: as the files are (grey with "
        "data_transforms.domain auto if all are grey saved as RGB)."
    )
    alpha: Literal["auto", "drop", "mask", "keep"] = Field(
        description="Transparency. mask: laid on white (deeper than 8 bit: the median of what is seen); "
        "auto: as mask, but bright shapes of one colour on black, and images of which nothing is seen as "
        "stored; drop: the colours as stored; keep: a further channel."
    )
    clip: Annotated[float, Field(ge=0, le=0.1)] = Field(
        description="Share of a channel's values, deeper than 8 bit, that is clipped to black, and as much "
        "to white; 0: black is the smallest value of the training, white the largest."
    )
    stored_px: Annotated[int, Field(ge=MIN_VIEW_PX, le=MAX_VIEW_PX)] | None = Field(
        description="Side of the packed copies, pixels; null: 1.15 views, at most the largest source side."
    )
    geometry: Literal["square", "scale"] = Field(
        description="How packed copies get their side. square: every image is squashed to it, crops keep its "
        "aspect; scale: images lie on a canvas of that side, not resized; larger ones are shrunk to fit."
    )
    layout: Literal["auto", "hwc", "chw"] = Field(
        description="Axes of arrays (.npy, .npz, in memory). hwc: height, width, channels; chw: channels "
        "first; auto: by the shapes of the whole set, which is refused if these do not tell."
    )
    packs: Text | None = Field(description="Folder of packed copies; null: 'packs' beside the run folder.")
    memory: Literal["auto", "ram", "map", "device"] = Field(
        description="Where the packed copy is read from: RAM, a memory map, the device; auto: by its size."
    )
    max_bad: Probability = Field(description="Share of unreadable files above which packing stops.")
    skip_unreadable: bool = Field(
        description="Whether folders and files that the system cannot read (permissions, a failing disk) are "
        "left out, and tried again by the next start; false: they stop the work."
    )


class TrainerConfig(Section):
    """Length, batch, average and house-keeping of the training."""

    batch_size: Annotated[int, Field(ge=2, le=2**20)] | None = Field(
        description="Images of one step, over all ranks (paper 4096); null: by device and number of images."
    )
    accumulation_steps: Annotated[int, Field(ge=1, le=2**16)] | None = Field(
        description="Parts that a batch is computed in, one by one, to save memory; null: as few as fit."
    )
    m: Probability | None = Field(
        description="Base tau, the share of the old target that a step keeps; null: by optimizer.derive."
    )
    m_schedule: Literal["constant", "cosine"] = Field(
        description="Tau over the run: constant, or from m to 1 by a cosine (the paper's)."
    )
    max_epochs: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        description="Length of the run, passes over the images; null: max_hours decides, or if that is null "
        "number of images, device and speed."
    )
    max_hours: Annotated[float, Field(gt=0, le=10**5)] | None = Field(
        description="Length of the run, hours from first to last step, all starts together; schedules are "
        "fitted to the measured speed and end in time. null: max_epochs decides."
    )
    checkpoint_interval: int = Field(ge=1, description="Steps between checkpoints; the end has one as well.")
    num_workers: int = Field(ge=1, le=1024, description="Threads that decode images for the packed copy.")
    log_interval: int = Field(ge=1, description="Steps between log lines.")
    health_interval: int = Field(ge=1, description="Steps between checks for collapse.")
    loggers: Annotated[list[LoggerName], AfterValidator(_check_once)] = Field(
        description="Where curves go besides metrics.jsonl; all but tensorboard are packages to install."
    )
    seed: Seed = Field(description="Seed of weights, order and views.")
    device: DeviceSetting = Field(
        description="cuda: NVIDIA or AMD, mps: Apple, xpu: Intel; auto: a GPU where there is one."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        description="Of the networks; auto: bf16 where the hardware has it, else fp32."
    )
    convolution: Literal["fast", "library"] = Field(
        description="On CPU; fast: each direction the faster way for its shape; library: torch's."
    )


class OptimizerParams(Section):
    """Numbers of the optimizer."""

    lr: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        description="Learning rate after warm-up (times batch_size / 256 with scale_lr); null: by derive."
    )
    momentum: float = Field(ge=0, lt=1, description="Share of the old direction kept; AdamW's first beta.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = Field(
        description="Weight decay of weights, never of biases and norms; null: by derive."
    )


class OptimizerConfig(Section):
    """The optimizer, its schedule, and the rule that fills in what is null."""

    name: Literal["sgd", "lars", "adamw"] = Field(description="The optimizer.")
    params: OptimizerParams = Field(description="Numbers of the optimizer.")
    schedule: Literal["constant", "cosine"] = Field(
        description="Learning rate after warm-up: constant, or to 0 by a cosine."
    )
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        description="Linear warm-up of the learning rate, epochs; null: by derive."
    )
    scale_lr: bool = Field(description="Whether the learning rate is multiplied by batch_size / 256.")
    derive: Literal["paper", "default"] | None = Field(
        description="Rule that fills lr, weight_decay, warmup_epochs and trainer.m where they are null. "
        "paper: its tables by length; default: by batch size and number of steps; null: no rule."
    )


class EvaluationConfig(Section):
    """How `byol eval` judges the encoder; no part of what a run is."""

    train: Text | None = Field(description="Labelled images to fit on, as data.source; null: data.source.")
    test: Text | None = Field(
        description="Labelled images to test on, as data.source; null: held out of train."
    )
    labels: Text | None = Field(description="CSV with the columns file,label; null: labels of the source.")
    max_unmatched: float = Field(
        ge=0,
        le=1,
        description="Share of the labels, or rows of metadata, that may be of no image, 0..1; 1: also every "
        "label of a class.",
    )
    weights: Text | None = Field(
        description="Weights to compare with: folder of a run, .safetensors, .pth or .pt file of this run's "
        "kind of network, or timm:MODEL if on this machine; null: none."
    )
    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        description="Folds where there is no test part, count: every labelled image is tested on once; null: "
        "a fifth is held out (5 with groups)."
    )
    groups: Text | None = Field(
        description="What must not lie in two folds: a column of labels, or 'folder'; null: nothing."
    )
    sgd_above: int = Field(
        ge=0, description="Training images, count, above which the linear classifier is fitted by SGD."
    )
    num_draws: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        description="Draws of a few images of each class behind the low-shot curve, count; null: no curve."
    )
    seed: Seed = Field(description="Seed of folds, validation parts, draws and intervals.")
    num_bootstrap: int = Field(ge=10, le=10**6, description="Resamples behind a 95 % interval, count.")


class Config(Section):
    """Everything that a run depends on."""

    preset: Literal["classic", "paper", "default", "demo"] = Field(
        description="Where settings that are not given come from."
    )
    network: NetworkConfig = Field(description="Encoder and heads.")
    data_transforms: DataTransforms = Field(description="The views.")
    trainer: TrainerConfig = Field(description="The training.")
    optimizer: OptimizerConfig = Field(description="The optimizer.")
    data: DataConfig = Field(description="The images.")
    evaluation: EvaluationConfig = Field(description="The evaluation.")

    @property
    def channels(self) -> int | None:
        """Channels that the configuration states; None: as the data has."""
        shape = self.data_transforms.input_shape
        return None if shape is None else shape[2]

    # What may be left open is read here: by then it must have been chosen.

    @property
    def view_px(self) -> int:
        """Side of a view, pixels."""
        return self.data_transforms.view_px

    @property
    def batch_size(self) -> int:
        """Images of one step, over all ranks."""
        return _known(self.trainer.batch_size)

    @property
    def accumulation_steps(self) -> int:
        """Parts that a batch is computed in."""
        return _known(self.trainer.accumulation_steps)


_Value = TypeVar("_Value")


def _known(value: _Value | None) -> _Value:
    assert value is not None, "an open setting is read before it is chosen"
    return value
