"""The trained encoder of a run: `encoder.safetensors` (weights) and `encoder.json` (how to use them).

The weights have the plain key names of timm or torchvision; a stem that these do not have is marked
(`weights.stem_mark`). The preprocessing is part of the encoder. All forms of images are processed in the same
way, so the same image always gives the same features:

    file, array, Pillow image or tensor -> chosen channels -> square of stored_px -> whole image of seen_px
    -> features, or the mean of those of the image and its mirror image

Nothing here reads pickles.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Real
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from byol.base.console import Count
from byol.base.disk import read_bytes
from byol.base.errors import CheckpointError, ConfigError, DataError, ValueRangeWarning
from byol.base.files import write_atomically
from byol.base.records import check_tensors, seal_tensors
from byol.config import load_config
from byol.data.decode.fitting import fit
from byol.data.decode.formats import ImageArray, bits_of_dtype
from byol.data.decode.image import Square, read_square
from byol.data.pack.packed import Packed
from byol.data.pack.value_range import check_bits, describe_outside
from byol.data.sources.in_memory import Images, OneImage, in_memory
from byol.data.sources.opening import open_source
from byol.device.devices import choose_device, exact_fp32, send_stored
from byol.encoder.spec import AGAIN, SPEC_NAME, EncoderSpec, dump_spec, read_spec
from byol.kernels.convolution import accelerate
from byol.kernels.frozen import FrozenNetwork
from byol.kernels.winograd import constant_weights
from byol.method.networks import build_encoder
from byol.method.views import encode_whole, whole_view
from byol.weights.stem_mark import mark_stem, unmark_stem

WEIGHTS_NAME = "encoder.safetensors"

CPU_IMAGES = 64  # images per forward pass on CPU; 256 took four times the memory and 5 to 20 % longer

ManyImages = OneImage | Sequence[OneImage]


@dataclass(frozen=True)
class Block:
    """Features of some images, in the order of the source."""

    names: list[str]
    features: Float32[np.ndarray, "image feature"]
    places: list[int]  # index of each image in the source
    end: int  # number of images of the source that have been processed so far


class Encoder:
    """A trained, frozen encoder with its preprocessing. `byol.load` loads one from a run folder."""

    def __init__(self, spec: EncoderSpec, module: nn.Module, *, device: str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        module = accelerate(module.eval().requires_grad_(False))
        self.module = module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._frozen = FrozenNetwork(self.module)

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"<byol.Encoder {spec.name}: {spec.channels} channels, views of {spec.view_px} px, "
            f"{spec.num_features} features, step {spec.done:,}, on {self.device}>"
        )

    def embed(self, images: ManyImages, *, batch_size: int = 256) -> Float32[np.ndarray, "image feature"]:
        """Compute the features of images: float32, one row per image, in the order of the images.

        `images` may be

        - a path: an image, a folder (sorted by path), a .txt or .csv list, or a .npy array of images;
        - a NumPy array: (height, width, channel) or (image, height, width, channel);
        - a tensor: (channel, height, width) or (image, channel, height, width);
        - a Pillow image;
        - a sequence of single images of these kinds.

        Pass arrays and tensors with the values that image files hold, not scaled or normalised: scaling is
        part of the encoder. If the values of an image lie outside the range of the training images, a
        `ValueRangeWarning` names it.

        Raises:
            DataError: an image cannot be read, or has other channels or another depth than the training
                images. The message names the first one.
        """
        blocks = self.embed_source(gather(images, self.spec), batch_size=batch_size)
        return _join([block.features for block in blocks], self.spec.num_features)

    __call__ = embed

    def embed_source(
        self,
        images: Images,
        *,
        first: int = 0,
        batch_size: int = 256,
        on_bad: Callable[[str, DataError], None] | None = None,
        on_outside: Callable[[str, str], None] | None = None,
        on_read: Callable[[str, Square], None] | None = None,
    ) -> Iterator[Block]:
        """Yield names and features in blocks, so that memory does not grow with the number of images.

        - `first` is the index of the first image to embed. The images before it are not read.
        - `on_bad(name, error)` is called for each image that cannot be used; the image is left out.
        - `on_outside(name, text)` is called for each image whose values lie outside the range of the training
          images. Without it, a `ValueRangeWarning` is issued.
        - `on_read(name, square)` is called for each image that is used.

        Raises:
            DataError: an image cannot be used, and there is no `on_bad`. The message names the image.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

            def start(begin: int) -> list[Future[Square | DataError]]:
                end = min(begin + batch_size, len(images))
                return [pool.submit(self._try_square, images, index) for index in range(begin, end)]

            reading = start(first)
            for begin in range(first, len(images), batch_size):
                # The next block is read while the network processes this one.
                block, reading = reading, start(begin + batch_size)
                names, squares, places = [], [], []
                for index, future in enumerate(block, start=begin):
                    square = future.result()
                    if not isinstance(square, DataError):
                        names.append(images.names(index))
                        places.append(index)
                        if on_read is not None:
                            on_read(images.names(index), square)
                        if (
                            found := describe_outside(square.pixels, self.spec.pixels, square.filled)
                        ) is not None:
                            (on_outside or _warn)(images.names(index), found)
                        squares.append(square.pixels)
                    elif on_bad is not None:
                        on_bad(images.names(index), square)
                    else:
                        _cancel(reading)
                        raise DataError(f"{images.names(index)}: {square}") from square
                yield Block(names, self._embed_squares(squares), places, begin + len(block))

    def embed_packed(
        self,
        images: Packed,
        *,
        rows: Int64[np.ndarray, " image"] | None = None,
        batch_size: int = 256,
        progress: Count | None = None,
    ) -> Float32[np.ndarray, "image feature"]:
        """Return features of packed images, or of those in `rows`; call `progress` with (done, total).

        The values are scaled as in the training of this encoder, not by the statistics of this pack. If
        images of another pack than that of the training are outside the training range, a `ValueRangeWarning`
        says how many there are and names the first.

        Raises:
            DataError: the images have another bit depth than those of the training.
        """
        try:
            check_bits(images.bits, self.spec.bits)
        except DataError as error:
            raise DataError(f"{images.folder}: {error}") from None
        rows = np.arange(len(images)) if rows is None else rows
        blocks, outside = [], dict[int, str]()
        for first in range(0, len(rows), batch_size):
            chosen = images.read(rows[first : first + batch_size])
            if images.fingerprint != self.spec.data_fingerprint:
                found = (describe_outside(image, self.spec.pixels) for image in chosen)
                outside |= {first + i: text for i, text in enumerate(found) if text is not None}
            blocks.append(self._embed_squares([fit(image, self.spec.stored_px) for image in chosen]))
            if progress is not None:
                progress(min(first + batch_size, len(rows)), len(rows))
        if outside:
            place, text = next(iter(outside.items()))
            count = f"{len(outside)} of {len(rows)} images are outside the training range, the first is "
            _warn(f"{count}{images.names[int(rows[place])]}", text)
        return _join(blocks, self.spec.num_features)

    @torch.inference_mode()
    def encode(self, squares: Real[Tensor, "image channel stored stored"]) -> Float[Tensor, "image feature"]:
        """Compute features y of stored squares on the encoder's device, in float32 even under autocast."""
        views = whole_view(send_stored(squares, self.device), self.spec.seen_px, pixels=self.spec.pixels)
        return encode_whole(self.encode_views, views, mirrored=self.spec.mirrored)

    @torch.inference_mode()
    def encode_views(self, views: Float[Tensor, "image channel view view"]) -> Float[Tensor, "image feature"]:
        """Compute the features y of views that `make_views` returns, in the same way as `encode`.

        Mirror images have no part in them.
        """
        views = views.to(self.device)
        if self._frozen.module is not self.module:
            self._frozen = FrozenNetwork(self.module)
        if (features := self._frozen(views)) is not None:
            return features
        parts = torch.split(views, CPU_IMAGES if self.device.type == "cpu" else max(1, len(views)))
        with torch.autocast(self.device.type, enabled=False), exact_fp32(self.device), constant_weights():
            return torch.cat([self.module(part) for part in parts]).float()

    def _embed_squares(self, squares: Sequence[ImageArray]) -> Float32[np.ndarray, "image feature"]:
        if not squares:
            return _join([], self.spec.num_features)
        # In memory this is channels_last, the format of the network.
        tensor = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        return self.encode(tensor).cpu().numpy()  # waits for the device

    def _try_square(self, images: Images, index: int) -> Square | DataError:
        """Read an image; return an error instead of raising it, so that errors are reported in order."""
        try:
            spec = self.spec
            channels = list(spec.select) if isinstance(spec.select, tuple) else spec.select
            item = images.item(index)
            square = read_square(
                item, px=spec.stored_px, channels=channels, geometry=spec.geometry, alpha=spec.alpha
            )
            if square.pixels.shape[2] != spec.channels:
                raise DataError(
                    f"has {square.pixels.shape[2]} channels, but the encoder was trained on {spec.channels}; "
                    "give images like the training images"
                )
            check_bits(bits_of_dtype(square.pixels.dtype), spec.bits)
            return square
        except DataError as error:
            return error


# ---- Images in any form


def gather(images: ManyImages, spec: EncoderSpec, *, skip_unreadable: bool = False) -> Images:
    """Convert any input of `Encoder.embed` to images that are read one by one.

    Arrays have the layout of the training arrays, if there were any; tensors have channels first.
    `skip_unreadable`: leave out folders that the system cannot read, as with data.skip_unreadable.

    Raises:
        DataError: a path does not exist or holds no images; or the channel axis of the arrays is ambiguous.
    """
    if isinstance(images, str | Path):
        overrides = [f"data.layout={spec.layout}", f"data.skip_unreadable={str(skip_unreadable).lower()}"]
        data = load_config(None, overrides, preset="default").data
        return open_source(data, source=str(images), trained=spec.trained_layout)
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4):
        return in_memory([images], spec.layout, trained=spec.trained_layout)
    return in_memory(list(images), spec.layout, trained=spec.trained_layout)


def _warn(name: str, what: str) -> None:
    warnings.warn(f"{name}: {what}", ValueRangeWarning, stacklevel=3)


def _join(blocks: list[np.ndarray], num_features: int) -> Float32[np.ndarray, "image feature"]:
    return np.concatenate(blocks) if blocks else np.empty((0, num_features), dtype=np.float32)


def _cancel(reading: Sequence[Future[Square | DataError]]) -> None:
    for future in reading:
        future.cancel()


# ---- Files


def save_encoder(folder: Path, encoder: nn.Module, spec: EncoderSpec) -> None:
    """Write both files atomically; the weights first, so that `encoder.json` never exists without them.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    write_atomically(folder / WEIGHTS_NAME, seal_tensors(to_safetensors(mark_stem(state, spec.stem))))
    write_atomically(folder / SPEC_NAME, dump_spec(spec))


def load(run: str | Path, *, device: str = "auto") -> Encoder:
    """Load the encoder of a run folder, or of any folder with `encoder.safetensors` and `encoder.json`.

    `RUN/target` holds the encoder of the target network, `RUN/best` the best one by label-free measures.
    `device` is "auto" (a GPU if there is one), "cpu", "cuda", "mps", "xpu", or one of several GPUs, such as
    "cuda:1".

    Raises:
        CheckpointError: a file is missing, damaged, of an unknown format, or belongs to another network.
        ConfigError: the device does not exist.
    """
    chosen = choose_device(device, key="device")
    folder = Path(run)
    if folder.name in (WEIGHTS_NAME, SPEC_NAME):
        folder = folder.parent
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; name that of a run, or train one: byol train IMAGES/ -o runs/NAME"
        )
    spec = read_spec(_find(folder, SPEC_NAME))
    path = _find(folder, WEIGHTS_NAME)
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced below
        try:
            module = build_encoder(spec.name, channels=spec.channels, view_px=spec.view_px, stem=spec.stem)
        except ConfigError as error:
            raise CheckpointError(f"{folder / SPEC_NAME}: {error}") from None
    _fill(module, path, spec=spec)
    return Encoder(spec, module, device=str(chosen))


def _find(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: has no {name}; name a run folder, or repeat the `byol train` command to write it"
        )
    return path


def _fill(module: nn.Module, path: Path, *, spec: EncoderSpec) -> None:
    """Load the weights into the module; every key and shape must match."""
    try:
        content = read_bytes(path)
        check_tensors(content)
        given, stem = unmark_stem(load_tensors(content))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged or cut short ({error}); {AGAIN}") from None
    if stem not in (None, spec.stem):
        raise CheckpointError(
            f"{path}: has the stem '{stem}', but {SPEC_NAME} beside it says '{spec.stem}'; {AGAIN}"
        )
    wanted = module.state_dict()
    missing, unexpected = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    wrong = [key for key in sorted(wanted.keys() & given.keys()) if wanted[key].shape != given[key].shape]
    for keys, problem in (
        (missing, "is missing"),
        (unexpected, f"is not part of {spec.name}"),
        (wrong, f"has another shape than in {spec.name}"),
    ):
        if keys:
            others = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise CheckpointError(f"{path}: the key '{keys[0]}'{others} {problem}; {AGAIN}")
    module.load_state_dict(given, strict=True)
