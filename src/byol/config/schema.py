"""All settings of a run: name, type, bounds, unit and documentation. Presets hold the defaults.

Validation is strict: an integer is accepted for a float, nothing else is converted. `configuration.py` reads
and writes the files.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from byol.config.values import (
    MAX_HUE,
    MAX_VIEW_PX,
    MIN_VIEW_PX,
    AreaRange,
    AspectRange,
    ChannelList,
    Probability,
    Seed,
    Shape,
    SigmaRange,
    Strength,
    Text,
    check_once,
)

LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
DeviceSetting = Literal["auto", "cpu", "cuda", "mps", "xpu"]
Domain = Literal["auto", "photo", "grey", "microscopy", "satellite", "medical", "industrial"]

# Settings that may be left open, and the value that marks them as open. `auto/choices.py` chooses their
# values from the images and the machine.
UNSET: dict[str, str | None] = {
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


class ProjectionHead(Section):
    """Sizes of projector and predictor (linear, BatchNorm, ReLU, linear)."""

    mlp_hidden_size: int = Field(ge=1, le=65536, description="Units of the hidden layer (paper: 4096).")
    projection_size: int = Field(ge=2, le=65536, description="Units of the output layer (paper: 256).")


class NetworkConfig(Section):
    """The encoder and its heads."""

    name: Text = Field(description="Name of a timm or torchvision model. auto: chosen for the device.")
    stem: Literal["auto", "standard", "small", "strided"] = Field(
        description="First layers of a ResNet. standard: the model's own; small: 3x3 convolution with "
        "stride 1, no max-pool; strided: 3x3 convolution with stride 2, no max-pool; auto: small for views "
        "of at most 64 px, otherwise standard. If network.name is auto, byol chooses the stem with the "
        "network."
    )
    projection_head: ProjectionHead = Field(description="Sizes of projector and predictor.")
    fine_tune_from: Text | None = Field(
        description="Weights to start from: a run folder, a weights file (FILE:PREFIX takes only "
        "weights whose names begin with PREFIX), or timm:MODEL if timm has it here. null: random weights."
    )
    warm_heads: Annotated[int, Field(ge=0)] | None = Field(
        description="Number of first steps that train only the heads while the encoder is frozen. null: 5 % "
        "of the run, at most 500 steps, for new heads on a trained encoder; otherwise 0."
    )
    encoder_lr: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="Learning rate of the encoder as a fraction of the heads' learning rate. null: 0.3 for "
        "new heads on a trained encoder; otherwise 1."
    )


class View(Section):
    """One distribution of random views. Every probability is in 0..1 and applies to each image by itself."""

    crop_area: AreaRange = Field(description="Area of the crop as a fraction of the image, [low, high].")
    crop_aspect: AspectRange = Field(description="Aspect ratio (width / height) of the crop, [low, high].")
    flip: Probability = Field(description="Probability of a left-right flip.")
    vertical_flip: Probability = Field(description="Probability of an up-down flip.")
    turn: Probability = Field(
        description="Probability of a rotation by 90, 180 or 270 degrees, without interpolation."
    )
    rotation: float = Field(
        ge=0,
        le=180,
        description="Largest rotation, degrees; the angle is uniform in [-rotation, rotation], edges are "
        "reflected.",
    )
    jitter: Probability = Field(
        description="Probability of colour jitter: brightness, contrast, saturation, hue and gamma."
    )
    brightness: Strength = Field(
        description="Brightness factor, uniform within 1 +- brightness * data_transforms.s."
    )
    contrast: Strength = Field(
        description="Contrast factor, uniform within 1 +- contrast * data_transforms.s."
    )
    saturation: Strength = Field(
        description="Saturation factor, uniform within 1 +- saturation * data_transforms.s."
    )
    hue: float = Field(
        ge=0,
        le=MAX_HUE,
        description="Hue shift in turns (1 = full circle), uniform within +- hue * data_transforms.s.",
    )
    grey: Probability = Field(description="Probability that the view becomes grey.")
    blur: Probability = Field(description="Probability of a Gaussian blur.")
    blur_sigma: SigmaRange = Field(
        description="Sigma of the blur, pixels of a 224 px view (scaled to the actual view size), [low, "
        "high]."
    )
    solarize: Probability = Field(description="Probability of solarization: values above 1/2 are inverted.")
    invert: Probability = Field(description="Probability that all values are inverted.")
    gamma: Strength = Field(
        description="Gamma correction x ** exp(u) with u uniform in [-gamma, gamma]; part of the colour "
        "jitter."
    )
    noise: float = Field(
        ge=0, le=1, description="Gaussian noise with std uniform in [0, noise], as a fraction of full scale."
    )
    channel_drop: Probability = Field(description="Probability that one channel is replaced by its mean.")


class DataTransforms(Section):
    """How byol makes two views of each image."""

    domain: Domain | None = Field(
        description="Kind of images; it selects a table of view settings. auto: byol chooses it from the "
        "images; null: use the view settings of the preset."
    )
    s: float = Field(
        ge=0, le=10, description="Colour jitter: factor of brightness, contrast, saturation and hue."
    )
    input_shape: Shape | None = Field(
        description="Height, width (equal, pixels) and channels of a view; channels null: as many as the "
        "images have. null: byol chooses the size from the images and the device."
    )
    whole_px: Annotated[int, Field(ge=MIN_VIEW_PX, le=MAX_VIEW_PX)] | Literal["auto"] | None = Field(
        description="Size to which the trained encoder resizes whole images, pixels. null: that of a view; "
        "auto: one at which objects look as large as in the average crop, if the network accepts any size."
    )
    whole_mirrored: bool | Literal["auto"] = Field(
        description="Whether features are the mean of those of an image and of its mirror image, which takes "
        "twice as long. auto: if training flips both views left-right."
    )
    target_view: Literal["auto", "other", "weak"] = Field(
        description="View that the target network sees. other: the other one, as in BYOL; weak: one more, of "
        "a large crop in its own colours, which both predict; auto: weak where it was measured to help."
    )
    view1: View = Field(description="Distribution of the first view.")
    view2: View = Field(description="Distribution of the second view.")

    @property
    def view_px(self) -> int:
        """Side of a view in px; must be resolved."""
        return _known(self.input_shape)[0]


class DataConfig(Section):
    """The images."""

    source: Text = Field(
        description="stl10, cifar10, cifar100, motifs (generated), a path (folder, .txt or .csv list, .npy "
        "array, .tar file, or a folder or list of .tar files), or the address of a pack of shards (s3://, "
        "gs://, https://)."
    )
    root: Text = Field(description="Folder with the official files of stl10, cifar10 and cifar100.")
    split: Text | None = Field(
        description="Split of the data set to train on. null: the usual one (stl10: train+unlabeled)."
    )
    download: bool = Field(description="Whether byol downloads missing official files into data.root.")
    channels: Literal["grey", "rgb"] | ChannelList | None = Field(
        description="Channels to use: grey, rgb or a list of channel numbers from 0. null: the channels of "
        "the files (grey if data_transforms.domain is auto and all images are grey but saved as RGB)."
    )
    alpha: Literal["auto", "drop", "mask", "keep"] = Field(
        description="Use of the alpha channel. mask: lay the image on white (on the median of the visible "
        "pixels if deeper than 8 bit); drop: ignore alpha; keep: use alpha as one more channel; auto: like "
        "mask, but bright single-colour shapes lie on black and fully transparent images ignore alpha."
    )
    clip: Annotated[float, Field(ge=0, le=0.1)] = Field(
        description="Fraction of each channel's values that is clipped to black, and the same to white, in "
        "images deeper than 8 bit. 0: black is the smallest value of the training images, white the largest."
    )
    stored_px: Annotated[int, Field(ge=MIN_VIEW_PX, le=MAX_VIEW_PX)] | None = Field(
        description="Size of the packed images, pixels. null: 1.15 times the view size, at most the largest "
        "side of the source images."
    )
    geometry: Literal["square", "scale"] = Field(
        description="How byol brings images to the packed size. square: resize every image to a square "
        "(crops restore its aspect ratio); scale: keep the size in pixels on a square canvas, and shrink "
        "only images that are larger than the canvas."
    )
    layout: Literal["auto", "hwc", "chw"] = Field(
        description="Axis order of arrays (.npy, .npz, in memory). hwc: channels last; chw: channels first; "
        "auto: byol reads it from the shapes of all arrays of the set and refuses ambiguous sets."
    )
    packs: Text | None = Field(description="Folder for packed images. null: 'packs' beside the run folder.")
    cache_gb: Annotated[float, Field(gt=0, le=10**6)] = Field(
        description="Largest size of the local copy of packed images in object storage, GB. It lies in the "
        "folder of data.packs and must hold 16 shards; byol deletes the least recently used shards.",
    )
    memory: Literal["auto", "ram", "map", "device"] = Field(
        description="Where the packed images are held. ram: in RAM; map: memory-mapped file; device: on the "
        "GPU; auto: chosen by their size."
    )
    max_bad: Probability = Field(description="Largest fraction of unreadable files; packing stops above it.")
    skip_unreadable: bool = Field(
        description="Whether to leave out folders and files that the system cannot read (permissions, a "
        "failing disk); the next start tries them again. false: stop with an error."
    )


class TrainerConfig(Section):
    """Length of the run, batch, target network, checkpoints and logs."""

    batch_size: Annotated[int, Field(ge=2, le=2**20)] | None = Field(
        description="Global batch size: images of one step over all ranks (paper: 4096). null: chosen from "
        "the device and the number of images."
    )
    accumulation_steps: Annotated[int, Field(ge=1, le=2**16)] | None = Field(
        description="Gradient accumulation: number of micro-batches per step. null: as few as memory allows."
    )
    m: Probability | None = Field(
        description="Base EMA decay (tau) of the target network. null: by the rule of optimizer.derive."
    )
    m_schedule: Literal["constant", "cosine"] = Field(
        description="EMA decay over the run: constant, or a cosine from m to 1 (as in the paper)."
    )
    vicreg_weight: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        description="First weight of VICReg's variance and covariance terms (1 to 0.04); it falls to 0 at "
        "half of the run. 0: BYOL alone. null: 1 where it was measured to help, otherwise 0."
    )
    max_epochs: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        description="Number of epochs. null: max_hours decides; if that is null too, byol chooses the "
        "number from the number of images, the device and its speed."
    )
    max_hours: Annotated[float, Field(gt=0, le=10**5)] | None = Field(
        description="Time budget in hours from the first to the last step, summed over resumed sessions; "
        "byol fits the schedules to the measured speed. null: max_epochs decides."
    )
    checkpoint_interval: int = Field(
        ge=1, description="Steps between checkpoints; the last step always saves one."
    )
    num_workers: int = Field(ge=1, le=1024, description="Threads that decode images for packing.")
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        description="CPU threads of PyTorch in each process. null: one per core, or fewer where byol times "
        "steps to choose settings and fewer threads are faster, as is common while other programs run."
    )
    log_interval: int = Field(ge=1, description="Steps between log lines.")
    health_interval: int = Field(ge=1, description="Steps between checks for collapse.")
    loggers: Annotated[list[LoggerName], AfterValidator(check_once)] = Field(
        description="Loggers for the curves, besides metrics.jsonl. All but tensorboard need their own "
        "package."
    )
    seed: Seed = Field(description="Seed of the initial weights, the order of the images and the views.")
    device: DeviceSetting = Field(
        description="Device. cuda: NVIDIA or AMD; mps: Apple; xpu: Intel; auto: a GPU if there is one."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        description="Precision of the networks. auto: bf16 if the hardware is faster in it, otherwise fp32."
    )
    convolution: Literal["fast", "library"] = Field(
        description="Convolutions on CPU. fast: for each shape and direction the faster of byol's and "
        "PyTorch's kernel; library: always PyTorch's."
    )


class OptimizerParams(Section):
    """Numbers of the optimizer."""

    lr: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        description="Learning rate after warm-up (multiplied by batch_size / 256 if scale_lr is true). "
        "null: by the rule of optimizer.derive."
    )
    momentum: float = Field(ge=0, lt=1, description="Momentum of SGD and LARS, or the first beta of AdamW.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = Field(
        description="Weight decay; biases and norm layers have none. null: by the rule of optimizer.derive."
    )


class OptimizerConfig(Section):
    """The optimizer, its schedule, and the rule that fills in settings that are null."""

    name: Literal["sgd", "lars", "adamw"] = Field(description="The optimizer.")
    params: OptimizerParams = Field(description="Numbers of the optimizer.")
    schedule: Literal["constant", "cosine"] = Field(
        description="Learning rate after warm-up: constant, or a cosine to 0."
    )
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        description="Length of the linear learning-rate warm-up, epochs. null: by the rule of "
        "optimizer.derive."
    )
    scale_lr: bool = Field(description="Whether to multiply the learning rate by batch_size / 256.")
    derive: Literal["paper", "default"] | None = Field(
        description="Rule for lr, weight_decay, warmup_epochs and trainer.m where they are null. paper: the "
        "paper's values for the length of the run; default: from batch size and number of steps; null: no "
        "rule."
    )


class EvaluationConfig(Section):
    """How `byol eval` measures the encoder; these settings do not change the run."""

    train: Text | None = Field(
        description="Labelled images to fit on; same forms as data.source. null: data.source."
    )
    test: Text | None = Field(
        description="Labelled images to test on; same forms as data.source. null: byol holds out a part of "
        "train."
    )
    labels: Text | None = Field(
        description="CSV file with the columns file,label. null: the labels of the source."
    )
    max_unmatched: float = Field(
        ge=0,
        le=1,
        description="Largest fraction (0..1) of labels or metadata rows that match no image; byol stops "
        "above it, or if no label of a class matches. 1: never stop.",
    )
    weights: Text | None = Field(
        description="Weights to compare with: a run folder, a weights file for the same network, or "
        "timm:MODEL if timm has it on this machine. null: none."
    )
    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        description="Number of folds of a k-fold cross-validation, used if there is no test split; every "
        "labelled image is tested once. null: hold out a fifth of the images (5 folds if groups are given)."
    )
    groups: Text | None = Field(
        description="Groups that are never split between folds: a column of the labels, or 'folder'. null: "
        "no groups."
    )
    sgd_above: int = Field(
        ge=0,
        description="Number of training images above which SGD fits the linear classifier (below: L-BFGS).",
    )
    num_draws: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        description="Number of random draws per point of the few-label curve. null: no curve."
    )
    num_centroids: Annotated[int, Field(ge=2, le=10_000)] | None = Field(
        description="Number of k-means centroids of the baseline 'patches', which needs no network: four "
        "features per centroid. null: no such row."
    )
    seed: Seed = Field(description="Seed of folds, validation splits, draws and intervals.")
    num_bootstrap: int = Field(
        ge=10, le=10**6, description="Number of bootstrap resamples for a 95 % interval."
    )


class Config(Section):
    """The complete configuration of a run."""

    preset: Literal["classic", "paper", "default", "demo"] = Field(
        description="The preset that supplies every setting you leave out."
    )
    network: NetworkConfig = Field(description="The encoder and its heads.")
    data_transforms: DataTransforms = Field(description="The views.")
    trainer: TrainerConfig = Field(description="The training.")
    optimizer: OptimizerConfig = Field(description="The optimizer.")
    data: DataConfig = Field(description="The images.")
    evaluation: EvaluationConfig = Field(description="The evaluation.")

    @property
    def channels(self) -> int | None:
        """Channels set in the configuration; None: as many as the images have."""
        shape = self.data_transforms.input_shape
        return None if shape is None else shape[2]

    # A file may leave these settings open; they must be resolved before these properties are read.

    @property
    def view_px(self) -> int:
        """Side of a view in px."""
        return self.data_transforms.view_px

    @property
    def batch_size(self) -> int:
        """Images per step, over all ranks."""
        return _known(self.trainer.batch_size)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per step."""
        return _known(self.trainer.accumulation_steps)


_Value = TypeVar("_Value")


def _known(value: _Value | None) -> _Value:
    assert value is not None, "an open setting is read before it is resolved"
    return value
