"""From a name in the configuration to a packed copy: opens the source, packs it if that has not been done."""

import re
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from byol.base.console import print_line
from byol.base.errors import printable
from byol.config import Config
from byol.data.decode.reading import Alpha
from byol.data.labels.label_file import LabelFile
from byol.data.pack.packed import Packed
from byol.data.pack.packing import pack
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
) -> Packed:
    """The packed copy of `source` (default: `data.source`), made now or found from an earlier time.

    It lies in the folder `data.packs`, by default `packs` beside the run folder, so that runs share it.

    `stored_px` and `alpha` take the place of the configuration's. A console is told what was passed by.

    Raises:
        DataError: the source cannot be opened or has too many unreadable images.
    """
    data, view_px = config.data, config.view_px
    opened = open_source(data, source=source, split=split, labels=labels)
    packs = Path(data.packs) if data.packs is not None else run_dir.parent / "packs"
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
    folder = packs / f"{slug}-{px or 'auto'}-{view_px}px-{opened.fingerprint()[:8]}"
    bar = None
    if console is not None:
        for line in describe_passed_by(left_out_of(opened)):
            print_line(console, line)
        # disabled, it prints nothing; else it ends with an empty line in a log file
        bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar if bar is not None else nullcontext():
        task = (
            bar.add_task(f"packing {escape(printable(opened.name))}", total=len(opened))
            if bar is not None
            else None
        )

        def show(packed: int, total: int) -> None:
            if bar is not None and task is not None:
                bar.update(task, completed=packed, total=total)

        return pack(
            opened,
            folder=folder,
            stored_px=px,
            view_px=view_px,
            channels=data.channels,
            geometry=data.geometry,
            alpha=alpha,
            max_bad=data.max_bad,
            num_workers=config.trainer.num_workers,
            progress=show,
        )
