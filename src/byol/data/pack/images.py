"""From a name in the configuration to a packed copy: opens the source, packs it if that has not been done."""

import re
from pathlib import Path

from rich.console import Console

from byol.base.console import make_say, show_bar
from byol.config import Config
from byol.data.decode.reading import Alpha
from byol.data.labels.label_file import LabelFile
from byol.data.pack.packed import Packed
from byol.data.pack.packing import pack
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
    """The packed copy of `source` (default: `data.source`), made now or found from an earlier time.

    It lies in the folder `data.packs`, by default `packs` beside the run folder, so that runs share it.

    `stored_px` and `alpha` take the place of the configuration's; `trained` is as for `open_source`. A
    console is told what was passed by. `fingerprint` is that of the images of the run: if `data.source` is
    gone, their pack takes its place.

    Raises:
        DataError: the source cannot be opened or has too many unreadable images.
    """
    data, view_px = config.data, config.view_px
    packs = Path(data.packs) if data.packs is not None else run_dir.parent / "packs"
    if fingerprint and source in (None, data.source) and is_gone(data.source):
        packed = open_without_source(
            packs, source=data.source, fingerprint=fingerprint, labels=labels, stored_px=stored_px
        )
        if packed is not None:
            return packed
    opened = open_source(data, source=source, split=split, labels=labels, trained=trained)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", opened.name).strip("-").lower()[:40]
    px = stored_px if stored_px is not None else data.stored_px
    if data.channels is not None:  # else runs that choose others would take each other's place
        numbers = data.channels if isinstance(data.channels, list) else [data.channels]
        slug += "-" + "-".join(map(str, numbers))
    if data.geometry != "square":
        slug += f"-{data.geometry}"
    alpha = data.alpha if alpha is None else alpha
    if alpha != "auto":
        slug += f"-alpha-{alpha}"
    if data.clip != CLIP:
        slug += f"-clip-{data.clip:g}"
    folder = packs / f"{slug}-{px or 'auto'}-{view_px}px-{opened.fingerprint()[:8]}"
    say = make_say(console)
    for line in describe_passed_by(left_out_of(opened)):
        say(line)
    with show_bar(console, f"packing {opened.name}") as count:
        return pack(
            opened,
            folder=folder,
            stored_px=px,
            view_px=view_px,
            channels=data.channels,
            geometry=data.geometry,
            alpha=alpha,
            clip=data.clip,
            max_bad=data.max_bad,
            num_workers=config.trainer.num_workers,
            progress=count,
            say=say,
        )
