"""`byol.pack`: pack images without training, in one go or in parts on several machines."""

import re
from dataclasses import dataclass
from pathlib import Path

from byol.api.arguments import AnyPath, Overrides, choose_folder, make_partial_config
from byol.base.console import make_say, open_console
from byol.base.errors import ConfigError


@dataclass(frozen=True)
class PackedImages:
    """A pack, or one part of it."""

    folder: Path
    num_images: int
    num_left_out: int  # images that could not be read; `bad_files.csv` in the folder lists them
    px: int  # side of the packed images
    is_part: bool  # the parts must be joined before they can be used
    note: str  # "packed", "found", or how it was made
    settings: tuple[str, ...]  # that a training needs to use this pack, such as "data.packs=packs"


def pack(
    images: AnyPath,
    *,
    output: AnyPath | None = None,
    part: str | None = None,
    preset: str | None = None,
    overrides: Overrides = None,
    progress: bool | None = None,
) -> PackedImages:
    """Pack images as `train` does before its first step, or find their pack.

    With `part`, several processes or machines share the work: each packs one part, and the call without
    `part`, or a training, joins all parts. The same call continues a packing that was interrupted.

    Args:
        images: as for `train`.
        output: the folder for packs; by default `data.packs`, or `runs/packs`.
        part: "K/N" packs part K of N, such as "3/64".
        preset: as for `train`.
        overrides: as for `train`. All parts and the training need the same settings.
        progress: as for `train`.

    Raises:
        ConfigError: a setting or `part` is impossible.
        DataError: the images cannot be read or packed, or parts are missing.
    """
    from byol.auto.resolve import resolve_for_packing
    from byol.base.signals import interrupting
    from byol.data.pack.images import pack_images, packs_of

    chosen_part = None if part is None else _read_part(part)
    partial_config = make_partial_config(images, preset=preset, hours=None, overrides=overrides)
    console = open_console(progress, goes_on=True)
    with interrupting():
        run_dir = choose_folder(images, None, place="runs")
        config = resolve_for_packing(partial_config, run_dir, say=make_say(console))
        packs = packs_of(config, run_dir) if output is None else Path(output)
        packed = pack_images(config, packs, part=chosen_part, console=console)
    settings = [] if packs == run_dir.parent / "packs" else [f"data.packs={packs}"]
    if "data_transforms.input_shape" in partial_config.unset:
        settings.append(f"data_transforms.input_shape=[{config.view_px},{config.view_px},null]")
    if config.data.channels != partial_config.config.data.channels:
        settings.append(f"data.channels={config.data.channels}")
    return PackedImages(
        folder=packed.folder,
        num_images=len(packed),
        num_left_out=packed.num_bad,
        px=packed.stored_px,
        is_part=packed.folder.parent != packs,
        note=packed.note,
        settings=tuple(settings),
    )


def _read_part(text: str) -> tuple[int, int]:
    """Return K and N of "K/N"."""
    match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part {text}: must be K/N with K from 1 to N, such as 3/64")
    return int(match[1]), int(match[2])
