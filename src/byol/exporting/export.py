"""Write an encoder to a folder for other programs, after a check that they compute the same features.

    timm      config.json, model.safetensors     timm and transformers; input: views
    onnx      model.onnx                         onnxruntime and others; input: stored values
    torch     model.pt2                          PyTorch without byol; input: stored values

and README.md, the model card. Files are moved to the folder after the check, the card last.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from byol.base.console import silent
from byol.base.errors import CheckpointError, ConfigError
from byol.base.files import check_writable, reason_of, write_atomically
from byol.encoder.encoder import WEIGHTS_NAME, Encoder, load
from byol.encoder.spec import SPEC_NAME, EncoderSpec, dump_spec
from byol.exporting import onnx_file, timm_folder, torch_file
from byol.exporting.network import make_plain
from byol.exporting.parity import check_parity, check_views_parity
from byol.exporting.preprocessing import WholeEncoder
from byol.exporting.usage import Format, write_usage
from byol.reporting.card import make_bare_card, make_card
from byol.reporting.run_summary import read_summary

CARD_NAME = "README.md"
_FILES: dict[Format, tuple[str, ...]] = {
    "timm": (timm_folder.CONFIG_NAME, timm_folder.WEIGHTS_NAME),
    "onnx": (onnx_file.FILE_NAME, f"{onnx_file.FILE_NAME}.data"),
    "torch": (torch_file.FILE_NAME,),
}


@dataclass(frozen=True)
class Exported:
    """An export that was written."""

    folder: Path
    format: Format
    difference: float  # largest difference of its features from those of byol, relative to the largest

    def __repr__(self) -> str:
        return (
            f"<byol.Exported {self.folder}: {self.format}, features within {self.difference:.1e} of byol's>"
        )


def export(
    source: Path, output: Path | None, *, format: str, say: Callable[[str], None] = silent
) -> Exported:
    """Write the encoder in `source` for other programs to `output` (default: the name of `source` + format).

    `source` is a run folder, the folder of one of its encoders (`target`, `best`), or another folder with an
    encoder. An earlier export of this format in `output` is replaced.

    Raises:
        ConfigError: the format is unknown, lacks a package, or cannot hold this encoder.
        CheckpointError: there is no encoder, `output` holds something else or cannot be written, or the
            export does not compute the same features.
    """
    chosen = _check_format(format)
    folder = source.parent if source.name in (WEIGHTS_NAME, SPEC_NAME) else source
    output = folder.with_name(f"{folder.resolve().name}-{chosen}") if output is None else output
    check_output(output, format=chosen)
    check_writable(output / CARD_NAME)
    encoder = load(folder, device="cpu")
    if chosen == "timm":
        timm_folder.check_timm(encoder.spec)
    if (note := _describe_limit(encoder.spec, format=chosen)) is not None:
        say(note)
    with _empty_folder(output) as place:
        difference = _write(place, encoder, format=chosen)
        card = _write_card(folder, encoder.spec, format=chosen, difference=difference)
        _move(place, output, format=chosen)
        write_atomically(output / CARD_NAME, card.encode(errors="surrogateescape"))
    return Exported(output, chosen, difference)


@contextmanager
def _empty_folder(output: Path) -> Iterator[Path]:
    """Make a temporary folder in `output`; at the end delete it, and also `output` if it is empty.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".byol-", dir=output) as place:
            yield Path(place)
    except OSError as error:
        raise CheckpointError(
            f"{output}: cannot be written ({reason_of(error)}); free space or choose another folder with -o"
        ) from None
    finally:
        with suppress(OSError):  # not empty
            output.rmdir()


def _check_format(format: str) -> Format:
    if format not in get_args(Format):
        raise ConfigError(f"--format: '{format}' is unknown; choose {', '.join(get_args(Format))}")
    if format == "onnx":
        onnx_file.check_onnx()
    chosen: Format = format  # type: ignore[assignment]
    return chosen


def check_output(output: Path, *, format: Format) -> None:
    """Refuse a folder that holds anything but an earlier export of this format.

    Raises:
        CheckpointError: it holds other files, or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output}: is a file, not a folder; choose another name with -o")
    if not output.exists():
        return
    names = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    if names and (_FILES[format][0] not in names or not names <= {CARD_NAME, *_FILES[format]}):
        raise CheckpointError(
            f"{output}: holds files but no export with --format {format}; choose another folder with -o"
        )


def _describe_limit(spec: EncoderSpec, *, format: Format) -> str | None:
    """Describe the main limitation of this export, to be printed; None: there is none."""
    if format == "timm" and (problem := timm_folder.explain_own_scaling(spec)) is not None:
        return (
            f"timm's transform cannot prepare images for this encoder: {problem}; README.md says how to do it"
        )
    return None


def _write(place: Path, encoder: Encoder, *, format: Format) -> float:
    """Write the files of the format; return the largest difference of their features from those of byol."""
    spec, network = encoder.spec, make_plain(encoder)
    if format == "timm":
        timm_folder.write_timm(place, network, spec)
        return check_views_parity(timm_folder.open_timm(place), encoder, what="timm")
    text = dump_spec(spec).decode()
    program = torch_file.trace(WholeEncoder(spec, network), spec)
    if format == "torch":
        torch_file.write_torch(place, program, spec_text=text)
        return check_parity(torch_file.open_torch(place), encoder, what="torch.export")
    onnx_file.write_onnx(place, program, spec=spec, spec_text=text)
    return check_parity(onnx_file.open_onnx(place), encoder, what="onnxruntime")


def _write_card(folder: Path, spec: EncoderSpec, *, format: Format, difference: float) -> str:
    usage = write_usage(spec, format=format, difference=difference)
    if (folder / "config.yaml").is_file():
        return make_card(read_summary(folder), usage)
    return make_bare_card(folder.resolve().name, spec, usage)


def _move(place: Path, output: Path, *, format: Format) -> None:
    """Delete the files of an earlier export, its card first, then move the new files to `output`."""
    for name in (CARD_NAME, *_FILES[format]):
        (output / name).unlink(missing_ok=True)
    for path in place.iterdir():
        os.replace(path, output / path.name)
