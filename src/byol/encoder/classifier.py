"""A classifier of images: an encoder, a linear layer on its features, and the names of the classes.

    encoder.safetensors, encoder.json        the encoder, which `byol.load` can read
    classifier.safetensors, classifier.json  the linear layer; class names, and how it was trained

`byol finetune` writes them, `load_classifier` reads them. Nothing here reads pickles.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float32, Int64
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save
from torch import nn

from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError, ConfigError, DataError
from byol.base.files import check_writable, write_atomically
from byol.base.records import add_checksum, check_tensors, seal_tensors, take_checksum
from byol.data.decode.image import Square
from byol.data.sources.in_memory import Images
from byol.encoder.encoder import Encoder, ManyImages, gather, load, save_encoder
from byol.encoder.feature_file import FeatureRows
from byol.encoder.spec import EncoderSpec

FORMAT = 1
WEIGHTS_NAME = "classifier.safetensors"
SPEC_NAME = "classifier.json"

_WRITTEN = 65_536  # predictions written at once
_AGAIN = "repeat the `byol finetune` command to write it again"

Features = Float32[np.ndarray, "image feature"]


@dataclass(frozen=True)
class Linear:
    """Logits of features: features @ weight.T + bias."""

    weight: Float32[np.ndarray, "label feature"]
    bias: Float32[np.ndarray, " label"]

    def logits(self, features: Features) -> Float32[np.ndarray, "image label"]:
        """Return one value per class for each image."""
        logits: Float32[np.ndarray, "image label"] = features @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True)
class ClassifierSpec:
    """The content of `classifier.json`, which describes the weights beside it."""

    class_names: tuple[str, ...]
    num_features: int
    start: str  # the encoder before fine-tuning: "byol online", "byol target"
    fraction: float  # of the training labels, 0..1
    num_labels: int  # number of labelled images used for training
    epochs: int  # passes over them; 0: the encoder was not changed
    chosen: Mapping[str, str | int | float]  # settings, chosen on a subset of the training images
    byol_version: str


@dataclass(frozen=True)
class Predictions:
    """The class of each image."""

    names: list[str]  # of the images
    labels: list[str]  # their most probable classes
    probabilities: Float32[np.ndarray, "image label"]  # of all classes, in the order of `class_names`

    @property
    def confidences(self) -> Float32[np.ndarray, " image"]:
        """The probability of the predicted class, 0..1."""
        best: Float32[np.ndarray, " image"] = self.probabilities.max(axis=1)
        return best


class Classifier:
    """An encoder with its preprocessing, and a linear layer. `byol.load_classifier` loads one."""

    def __init__(self, spec: ClassifierSpec, encoder: Encoder, *, linear: Linear) -> None:
        self.spec = spec
        self.encoder = encoder
        self.linear = linear

    def __repr__(self) -> str:
        return f"<byol.Classifier of {len(self.class_names)} classes on {self.encoder!r}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.spec.class_names

    def predict(self, images: ManyImages, *, batch_size: int = 256) -> Predictions:
        """Predict the classes of images in any form that `Encoder.embed` accepts, in their order.

        Raises:
            DataError: an image cannot be read, or the encoder cannot use it. The message names the first one.
        """
        blocks = list(self.predict_source(gather(images, self.encoder.spec), batch_size=batch_size))
        probabilities = [block.probabilities for block in blocks]
        empty = np.empty((0, len(self.class_names)), dtype=np.float32)
        return Predictions(
            [name for block in blocks for name in block.names],
            [label for block in blocks for label in block.labels],
            np.concatenate([empty, *probabilities]),
        )

    __call__ = predict

    def predict_source(
        self,
        images: Images,
        *,
        batch_size: int = 256,
        on_bad: Callable[[str, DataError], None] | None = None,
        on_outside: Callable[[str, str], None] | None = None,
        on_read: Callable[[str, Square], None] | None = None,
    ) -> Iterator[Predictions]:
        """Yield predictions in blocks; images are read, reported and left out as in `Encoder.embed_source`.

        Raises:
            DataError: an image cannot be used, and there is no `on_bad`. The message names the image.
        """
        blocks = self.encoder.embed_source(
            images, batch_size=batch_size, on_bad=on_bad, on_outside=on_outside, on_read=on_read
        )
        for block in blocks:
            labels, probabilities = self._judge(block.features)
            names = [self.class_names[index] for index in labels.tolist()]
            yield Predictions(block.names, names, probabilities)

    def choose(self, features: Features) -> Float32[np.ndarray, "image 2"]:
        """Return the index of the most probable class of each image, and its probability."""
        labels, probabilities = self._judge(features)
        return np.stack([labels, probabilities.max(axis=1, initial=0)], axis=1, dtype=np.float32)

    def fingerprint(self) -> str:
        """Return a hash that changes when the linear layer or the class names change."""
        digest = hashlib.blake2b(to_json(self.class_names), digest_size=16)
        digest.update(self.linear.weight.tobytes() + self.linear.bias.tobytes())
        return digest.hexdigest()

    def _judge(
        self, features: Features
    ) -> tuple[Int64[np.ndarray, " image"], Float32[np.ndarray, "image label"]]:
        """Return the index of the most probable class of each image, and the probabilities of all classes."""
        logits = torch.from_numpy(self.linear.logits(features))
        return logits.argmax(dim=1).numpy(), logits.double().softmax(dim=1).float().numpy()


# ---- A table of predictions


def check_predictions_path(path: Path) -> None:
    """Check, before any prediction, that `write_predictions` can write this file.

    Raises:
        ConfigError: the suffix is not .csv.
        CheckpointError: the file cannot be written.
    """
    if path.suffix.lower() != ".csv":
        raise ConfigError(f"{path}: byol writes predictions as .csv; use this suffix")
    check_writable(path)


def write_predictions(
    path: Path, names: Sequence[str], *, choices: FeatureRows, classes: Sequence[str]
) -> None:
    """Write the columns `file`, `label`, `probability`, one line per image, atomically.

    `choices` are the rows of `Classifier.choose`, `classes` are the class names.

    Raises:
        ConfigError: see `check_predictions_path`.
        CheckpointError: the file cannot be written.
    """
    check_predictions_path(path)

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "label", "probability"])
        for first in range(0, len(names), _WRITTEN):
            rows = slice(first, first + _WRITTEN)
            for name, (label, probability) in zip(names[rows], choices[rows].tolist(), strict=True):
                writer.writerow([name, classes[int(label)], f"{probability:.4f}"])
        text.flush()
        text.detach()

    write_atomically(path, write)


# ---- Files


def save_classifier(
    folder: Path, module: nn.Module, encoder_spec: EncoderSpec, *, linear: Linear, spec: ClassifierSpec
) -> None:
    """Write the four files; `classifier.json` last, so that it never lies beside a different encoder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        (folder / SPEC_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder / SPEC_NAME}: cannot be replaced ({error.strerror})") from None
    save_encoder(folder, module, encoder_spec)
    # safetensors ignores the strides of an array, and would save a transposed array in the wrong order.
    arrays = {"weight": np.ascontiguousarray(linear.weight), "bias": np.ascontiguousarray(linear.bias)}
    write_atomically(folder / WEIGHTS_NAME, seal_tensors(save(arrays)))
    content = from_json(to_json({"format": FORMAT, **asdict(spec)}))
    write_atomically(folder / SPEC_NAME, to_json(add_checksum(content), indent=2) + b"\n")


def load_classifier(folder: str | Path, *, device: str = "auto") -> Classifier:
    """Load the classifier that `byol finetune` wrote into a folder. `device` is as in `byol.load`.

    Raises:
        CheckpointError: a file is missing, damaged, of an unknown format, or does not match the others.
        ConfigError: the device does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; name one that `byol finetune` wrote, or write it: "
            f"byol finetune RUN --train LABELLED/ -o {folder}"
        )
    for name in (SPEC_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: has no {name}, so it holds no classifier; train one: byol finetune {folder} "
                "--train LABELLED/"
            )
    spec = _read_spec(folder / SPEC_NAME)
    encoder = load(folder, device=device)
    linear = _read_linear(folder / WEIGHTS_NAME)
    shape = (len(spec.class_names), encoder.spec.num_features)
    if linear.weight.shape != shape or linear.bias.shape != shape[:1] or spec.num_features != shape[1]:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME}: has the shape {linear.weight.shape}, but the encoder and the "
            f"class names need {shape}; {_AGAIN}"
        )
    return Classifier(spec, encoder, linear=linear)


def _read_spec(path: Path) -> ClassifierSpec:
    try:
        content = from_json(read_bytes(path))
        if isinstance(content, dict):
            take_checksum(content)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: has format {found}, but this version of byol reads {FORMAT}; update byol, or {_AGAIN}"
        )
    try:
        return TypeAdapter(ClassifierSpec).validate_json(to_json(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {where}: {first['msg'].lower()}; {_AGAIN}") from None


def _read_linear(path: Path) -> Linear:
    try:
        content = read_bytes(path)
        check_tensors(content)
        tensors = load_tensors(content)
        return Linear(tensors["weight"], tensors["bias"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged or cut short ({error}); {_AGAIN}") from None
