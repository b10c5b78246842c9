"""`byol check`: examine images before training, and write a report to a folder."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from byol.auto.choices import FEWEST_IMAGES
from byol.auto.resolve import Forecast, count_channels, forecast, look_at_some
from byol.base.console import Count
from byol.base.errors import ByolError, CheckpointError, ConfigError, DataError
from byol.base.files import is_temporary
from byol.checking.doctor import Examined, examine, find_duplicates
from byol.checking.duplicates import find_leaks
from byol.checking.findings import Problem, find_leaks_problems, find_problems
from byol.checking.report import FILES, REPORT, Leaks, Report
from byol.config import DataConfig, PartialConfig
from byol.data.decode.image import read_square
from byol.data.sources.opening import open_source, splits_of
from byol.pictures.sheets import Sample
from byol.training import initial_weights
from byol.training.alarms import check_images, check_views
from byol.training.fixed_images import FixedImages

_SAMPLE, _SAMPLE_BYTES, _FEWEST = 256, 2**25, 16  # limits of the sample: images, bytes, at least images
_PX = 96  # side of the images in the sample if training is not possible


@dataclass(frozen=True, repr=False)
class CheckResult:
    """The outcome of a check; the report with pictures is in `folder`."""

    folder: Path
    lines: tuple[str, ...]
    exit_code: int  # 0: training may start, 1: it may not, 2: a setting is wrong

    def __repr__(self) -> str:
        outcome = "training may start" if self.is_fit else "training may not start"
        return f"<byol.CheckResult: {outcome}, report in {self.folder}>"

    @property
    def is_fit(self) -> bool:
        """Whether training may start."""
        return self.exit_code == 0


def check(
    partial_config: PartialConfig, folder: Path, *, test: str | None = None, progress: Count | None = None
) -> CheckResult:
    """Examine all images, forecast the training, and write the report to `folder`; write nothing elsewhere.

    `test` are images that training must not use, in any form of data.source.

    Raises:
        ConfigError: the folder cannot be used for a report.
        DataError: there are no images.
        CheckpointError: the folder cannot be written.
    """
    data, workers = partial_config.config.data, partial_config.config.trainer.num_workers
    source = open_source(data)
    tested = None
    if test is not None:
        tested = open_source(data, source=test, split="test" if splits_of(test) else None)
    _check_folder(folder, [data.source, *([] if test is None else [test])])
    found = examine(source, channels=data.channels, num_workers=workers, alpha=data.alpha, progress=progress)
    alike, leaks = find_duplicates(found), None
    problems = find_problems(found, alike, max_bad=data.max_bad, fewest=FEWEST_IMAGES)
    if tested is not None:
        other = examine(
            tested, channels=data.channels, num_workers=workers, alpha=data.alpha, progress=progress
        )
        leaks = Leaks(other, find_leaks(find_duplicates(found, other), len(found)))
        problems += find_leaks_problems(leaks.alike, other)
    is_unfit = any(problem.is_fatal for problem in problems)
    ahead, weights, failure = _forecast(partial_config, folder) if len(found) else (None, [], None)
    if isinstance(failure, ConfigError) or (failure is not None and not is_unfit):
        problems += [Problem(line, is_fatal=True) for line in str(failure).splitlines()]
    sample = _take_sample(found, partial_config, ahead)
    if sample is not None and ahead is not None and not is_unfit:
        problems += _judge_views(sample, ahead, source=data.source)
    report = Report(partial_config, found, alike, leaks, ahead, tuple(weights), sample, tuple(problems))
    report.write(folder)
    code = 2 if isinstance(failure, ConfigError) and not is_unfit else 1 if report.is_refused else 0
    return CheckResult(folder, tuple(report.lines(folder)), code)


def _check_folder(folder: Path, sources: Sequence[str]) -> None:
    for source in sources:
        if os.path.isdir(source) and folder.resolve().is_relative_to(Path(source).resolve()):
            raise ConfigError(f"-o {folder}: lies inside the image folder {source}; choose a folder outside")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # After a full disk or a kill, the folder may hold a report without its HTML page.
    others = {name for name in names if name not in FILES and not is_temporary(name, of=FILES)}
    if others and REPORT not in names:
        raise ConfigError(f"-o {folder}: holds files that are not from a report; choose another folder")


def _forecast(
    partial_config: PartialConfig, folder: Path
) -> tuple[Forecast | None, list[str], ByolError | None]:
    """Return the forecast of a run, notes on its initial weights, and the error if it is impossible."""
    ahead, weights = None, list[str]()
    try:
        look = look_at_some(partial_config, folder)
        ahead = forecast(partial_config, look)
        weights = initial_weights.rehearse(ahead.config, channels=count_channels(ahead.config, look))
    except (ConfigError, DataError, CheckpointError) as error:
        return ahead, weights, error
    return ahead, weights, None


# ---- A sample of images, prepared as for training


def _take_sample(found: Examined, partial_config: PartialConfig, ahead: Forecast | None) -> Sample | None:
    """Take images of the most common kind at equal distances in the set; blank images last."""
    if len(found) == 0:
        return None
    px, config = (_PX, partial_config.config) if ahead is None else (ahead.stored_px, ahead.config)
    channels, bits = next(iter(found.kinds))
    number = min(_SAMPLE, max(_FEWEST, _SAMPLE_BYTES // (px * px * channels * bits // 8)))
    rows = found.usual
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, number).astype(np.int64))]
    rows = rows[np.argsort(found.is_blank[rows], kind="stable")]
    return _read(found, rows, px=px, data=config.data)


def _read(found: Examined, rows: np.ndarray, *, px: int, data: DataConfig) -> Sample | None:
    names, squares, sizes, filled = [], [], [], []
    for row in rows.tolist():
        try:
            item = found.source.item(int(found.places[row]))
            square = read_square(
                item, px=px, channels=data.channels, geometry=data.geometry, alpha=data.alpha
            )
        except DataError:  # it cannot be read any more
            continue
        names.append(found.name(row))
        squares.append(square.pixels)
        filled.append(square.filled)
        sizes.append((square.height, square.width) if data.geometry == "square" else (px, px))
    if not squares:
        return None
    return Sample.of(names, np.stack(squares), np.array(sizes, np.int32), filled, clip=data.clip)


def _judge_views(sample: Sample, ahead: Forecast, *, source: str) -> Iterator[Problem]:
    """Iterate over the problems that training would report on these images and their views."""
    fixed = FixedImages(
        sample.images,
        torch.from_numpy(sample.sizes.astype(np.float32)),
        torch.full((len(sample),), -1),
        sample.pixels,
        ahead.config.data_transforms,
        ahead.plan.key("health", 1),
    )
    try:
        check_images(fixed, source=source)
        for line in check_views(fixed):
            yield Problem(f"{line.removeprefix('warning: ')} (views.png)")
    except DataError as error:
        yield Problem(str(error), is_fatal=True)
