"""Open the images that the configuration names, and pack them if there is no packed copy yet."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from byol.base.console import make_say, show_bar
from byol.base.errors import DataError
from byol.base.files import is_address
from byol.config import Config, DataConfig
from byol.data.decode.index import Source
from byol.data.decode.reading import Alpha
from byol.data.labels.label_file import LabelFile
from byol.data.pack.finding import find_pack
from byol.data.pack.packed import Packed
from byol.data.pack.packing import make_recipe, pack
from byol.data.pack.parts import Part, folder_of_parts, shard_name
from byol.data.pack.remote import check_settings, open_remote
from byol.data.pack.statistics import CLIP
from byol.data.pack.without_source import is_gone, open_without_source
from byol.data.sources.array_layout import TrainedLayout
from byol.data.sources.opening import left_out_of, open_source
from byol.data.sources.summary import describe_passed_by


def open_images(
    config: Config,
    run_dir: Path,
    *,
    console: Console | None,
    source: str | None = None,
    split: str | None = None,
    labels: LabelFile | None = None,
    stored_px: int | None = None,
    alpha: Alpha | None = None,
    trained: TrainedLayout | None = None,
    fingerprint: str | None = None,
) -> Packed:
    """Return the packed copy of `source` (default: `data.source`); make it if there is none yet.

    It lies in the folder `data.packs` (default: `packs` beside the run folder), so that runs can share it. If
    the source is an address, it is that of a pack of shards, which are fetched as they are needed.

    `stored_px` and `alpha` replace the values of the configuration; `trained` is as in `open_source`. The
    console prints which files were skipped. `fingerprint` is that of the images of the run: if `data.source`
    is gone, the pack with this fingerprint replaces it.

    Raises:
        DataError: the source cannot be opened or has too many unreadable images.
        ConfigError: the pack at an address was made with other settings, or `data.cache_gb` is too small.
    """
    data, packs = config.data, packs_of(config, run_dir)
    if is_address(source or data.source):
        if split is not None:
            raise DataError(f"{source}: a pack has no split {split}; give the address of that split instead")
        return _open_address(
            config, source or data.source, packs, labels=labels, stored_px=stored_px, console=console
        )
    if fingerprint and source in (None, data.source) and is_gone(data.source):
        packed = open_without_source(
            packs, source=data.source, fingerprint=fingerprint, labels=labels, stored_px=stored_px
        )
        if packed is not None:
            return packed
    opened = open_source(data, source=source, split=split, labels=labels, trained=trained)
    if stored_px is not None:
        data = data.model_copy(update={"stored_px": stored_px})
    if alpha is not None:
        data = data.model_copy(update={"alpha": alpha})
    return _pack(opened, config.model_copy(update={"data": data}), packs, part=None, console=console)


def packs_of(config: Config, run_dir: Path) -> Path:
    """Return the folder of the packs of a run: `data.packs`, or `packs` beside the run folder."""
    return Path(config.data.packs) if config.data.packs is not None else run_dir.parent / "packs"


def _open_address(
    config: Config,
    address: str,
    packs: Path,
    *,
    labels: LabelFile | None,
    stored_px: int | None,
    console: Console | None,
) -> Packed:
    data = config.data.model_copy(update={"source": address})
    packed = open_remote(address, packs, cache_gb=data.cache_gb)
    check_settings(packed, data, stored_px=data.stored_px if stored_px is None else stored_px)
    make_say(console)(
        f"{len(packed):,} packed images in {len(packed.shards):,} shards at {address}; byol keeps at most "
        f"{data.cache_gb:g} GB of them in {packs / 'remote'} (data.cache_gb)"
    )
    if labels is None:
        return packed
    numbers, class_names = labels.match(packed.names)["label"]
    return replace(packed, labels=numbers, class_names=class_names)


def pack_images(
    config: Config, packs: Path, *, part: tuple[int, int] | None = None, console: Console | None
) -> Packed:
    """Pack `data.source` into the folder `packs`, or find its pack. `part`: only part K of N of its images.

    Without `part`, parts that have been packed are joined. A part of a set that is already packed as a whole
    is that pack.

    Raises:
        DataError: as `open_images`; or there are fewer images than parts, or some parts are missing.
    """
    if is_address(config.data.source):
        raise DataError(f"{config.data.source}: is packed already; train on it with byol train")
    return _pack(open_source(config.data), config, packs, part=part, console=console)


def _pack(
    source: Source, config: Config, packs: Path, *, part: tuple[int, int] | None, console: Console | None
) -> Packed:
    data = config.data
    folder = packs / _name_pack(source, data, view_px=config.view_px)
    say = make_say(console)
    for line in describe_passed_by(left_out_of(source)):
        say(line)
    how: dict[str, Any] = {
        "stored_px": data.stored_px,
        "view_px": config.view_px,
        "channels": data.channels,
        "geometry": data.geometry,
        "alpha": data.alpha,
        "clip": data.clip,
    }
    if part is not None and find_pack(folder, make_recipe(source, **how))[0] is None:
        source = Part(source, *part)
        folder = folder_of_parts(folder, part[1]) / shard_name(part[0])
    with show_bar(console, f"preparing the images ({_show_name(source.name)})") as count:
        return pack(
            source,
            folder=folder,
            max_bad=data.max_bad,
            num_workers=config.trainer.num_workers,
            progress=count,
            say=say,
            **how,
        )


def _name_pack(source: Source, data: DataConfig, *, view_px: int) -> str:
    """Return the name of the folder of a pack: runs with different settings must not replace each other's."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source.name).strip("-").lower()[:40]
    if data.channels is not None:
        numbers = data.channels if isinstance(data.channels, list) else [data.channels]
        slug += "-" + "-".join(map(str, numbers))
    if data.geometry != "square":
        slug += f"-{data.geometry}"
    if data.alpha != "auto":
        slug += f"-alpha-{data.alpha}"
    if data.clip != CLIP:
        slug += f"-clip-{data.clip:g}"
    return f"{slug}-{data.stored_px or 'auto'}-{view_px}px-{source.fingerprint()[:8]}"


def _show_name(name: str) -> str:
    """Return the name of a source for people: `motifs, train` is the training part."""
    source, _, split = name.rpartition(", ")
    parts = {"train": "training part", "test": "test part"}
    return f"{source}, {parts[split]}" if source and split in parts else name
