"""`byol embed` of a million small files, killed twice: is memory flat, is every image there once?

    python benchmarks/embedding_soak.py --threads 1 --out benchmarks/results/embedding-soak
    python benchmarks/embedding_soak.py --images 100000 --threads 1 --out runs/soak
    python benchmarks/embedding_soak.py --tiny --threads 1 --out runs/soak     # does it work at all?

Images of 16 px are made first (a second run with as many finds them); one in a thousand is broken. The
network is small and untrained: what is tested is all around it. The command is killed (SIGKILL) when 40 % of
the images are done and ended (SIGTERM) at 70 %; each time it is given again. Then the table is read: names
and order are compared with the files, and features of some images with those of a fresh encoder.
"""

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from command import new_parser, save_result
from measure import describe_command, describe_machine, limit_cores, machine_lines, read_memory
from PIL import Image

from byol.encoder.encoder import load, save_encoder
from byol.encoder.spec import EncoderSpec
from byol.method.networks import build_encoder
from byol.method.views import Pixels

_PX, _FEATURES = 16, 96
_IN_FOLDER = 10_000  # images
_BROKEN_EACH = 1000  # the last of so many is broken
_KEPT = 100  # samples of memory in the result
_CHECKED = 500  # images whose features are computed again
_KILLS = ((0.4, signal.SIGKILL), (0.7, signal.SIGTERM))
_COMMAND = """
import sys
from byol.cli.main import main
from byol.encoder import partial_rows
partial_rows.SAVE_INTERVAL_S = float(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    start: int  # of the command: the first is 0
    second: float  # since the first start
    done: int  # images, as far as it is saved
    own_bytes: int  # memory of its own, without libraries' files
    all_bytes: int


def _are_close(features: np.ndarray, again: np.ndarray) -> bool:
    """How many images are computed at a time decides how sums are rounded."""
    return bool(np.abs(features - again).max() <= 3e-5 * np.abs(again).max())


def main() -> int:
    options = _parse()
    threads = limit_cores(options.threads)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    work = options.work / f"embedding-soak-{options.images}"
    made_s = _make_images(work / "images", options.images)
    _make_encoder(work / "run")
    output = work / "features.parquet"
    output.unlink(missing_ok=True)
    samples, starts = _embed(work, output, options)
    result: dict[str, Any] = {
        "format": 1,
        **describe_command(),
        "tiny": options.tiny,
        "images": options.images,
        "machine": describe_machine(threads=threads),
        "made_s": made_s,
        "starts": starts,
        "table_bytes": output.stat().st_size,
        "found": _verify(work, output, options.images),
        "memory": _summarise(samples),
        "samples": [asdict(sample) for sample in samples[:: 1 + len(samples) // _KEPT]],
    }
    save_result(result, render(result), options.out / "embedding-soak")
    return 0 if all(result["found"].values()) else 1


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.tiny:
        options.images = 3000
    return options


# ---- Images and an encoder


def _name(index: int) -> str:
    return f"{index // _IN_FOLDER:04d}/{index:08d}.png"


def _is_broken(index: int) -> bool:
    return index % _BROKEN_EACH == _BROKEN_EACH - 1


def _make_images(folder: Path, num: int) -> float:
    """Colours that tell each image from the others, with some texture; the seconds it took."""
    start = time.perf_counter()
    mark = folder.with_name("images.made")
    if mark.exists():
        return 0.0
    texture = np.random.default_rng(0).integers(0, 100, (97, _PX, _PX, 3))
    for index in range(num):
        path = folder / _name(index)
        if index % _IN_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        if _is_broken(index):
            path.write_bytes(b"this is no image")
            continue
        colour = np.array([index % 151, index // 151 % 151, index // 151**2 % 151])
        Image.fromarray((texture[index % 97] + colour).astype(np.uint8)).save(path, compress_level=1)
    mark.touch()
    return time.perf_counter() - start


def _make_encoder(run: Path) -> None:
    torch.manual_seed(0)
    module = build_encoder("test_resnet", channels=3, view_px=_PX, stem="standard")
    half = (0.5,) * 3
    pixels = Pixels(low=(0.0,) * 3, high=(255.0,) * 3, mean=half, std=half)
    spec = EncoderSpec(
        "test_resnet", "standard", 3, _PX, _PX, _FEATURES, pixels, "online", 0, "0", "", "made by a script"
    )
    save_encoder(run, module, spec)


# ---- The command


def _embed(
    work: Path, output: Path, options: argparse.Namespace
) -> tuple[list[Sample], list[dict[str, Any]]]:
    """Until it ends by itself: what was seen of the process, and of each start how it ended."""
    samples: list[Sample] = []
    starts: list[dict[str, Any]] = []
    interval_s, pause_s = ("0", 0.02) if options.tiny else ("5", 1.0)
    arguments = ["embed", str(work / "run"), str(work / "images"), "-o", str(output), "--device", "cpu"]
    begin = time.perf_counter()
    for share, number in (*_KILLS, (2.0, signal.SIGTERM)):
        start_s, first = time.perf_counter(), _read_done(output)
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, interval_s, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while process.poll() is None:
            time.sleep(pause_s)
            done, memory = _read_done(output), read_memory(process.pid)
            if memory is not None:
                now_s = time.perf_counter() - begin
                samples.append(Sample(len(starts), now_s, done, memory.own_bytes, memory.all_bytes))
            if done >= share * options.images:
                process.send_signal(number)
        out, err = process.communicate()
        starts.append(
            {
                "seconds": time.perf_counter() - start_s,
                "from": first,
                "to": options.images if process.returncode == 0 else _read_done(output),
                "exit_code": process.returncode,
                "said": [line.replace(str(work), "WORK") for line in (out + err).splitlines()],
            }
        )
        if process.returncode == 0:
            break
    return samples, starts


def _read_done(output: Path) -> int:
    with suppress(OSError, ValueError):
        mark = json.loads(output.with_name(f"{output.name}.partial").joinpath("progress.json").read_text())
        return int(mark["done"])
    return 0


# ---- What came of it


def _verify(work: Path, output: Path, num: int) -> dict[str, bool]:
    """Each is to be true."""
    expected = [_name(index) for index in range(num) if not _is_broken(index)]
    file = pyarrow.parquet.ParquetFile(output)
    names = file.read(["file"])["file"].to_pylist()
    with output.with_suffix(".left_out.csv").open(newline="") as listed:
        left_out = [row[0] for row in csv.reader(listed)][1:]
    rows = np.linspace(0, len(expected) - 1, min(_CHECKED, len(expected))).astype(int)
    group_rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups = np.cumsum([0, *group_rows])
    seen = []
    for group in range(file.num_row_groups):
        here = rows[(rows >= groups[group]) & (rows < groups[group + 1])]
        table = file.read_row_group(group).take(here - groups[group]).drop_columns(["file"])
        seen.append(np.stack([column.to_numpy() for column in table.columns], axis=1))
    encoder = load(work / "run", device="cpu")
    again = encoder.embed([work / "images" / expected[row] for row in rows])
    return {
        "no name is lost, double or out of order": names == expected,
        "all broken files are listed, and no other": left_out
        == [_name(index) for index in range(num) if _is_broken(index)],
        "features are those of their images": _are_close(np.concatenate(seen), again),
        "nothing is left beside the table": not output.with_name(f"{output.name}.partial").exists(),
    }


def _summarise(samples: list[Sample]) -> list[dict[str, float]]:
    """Of each start that embedded: memory in its first and its last third of images, and the highest."""
    found = []
    for start in sorted({sample.start for sample in samples}):
        ours = [sample for sample in samples if sample.start == start]
        moving = [sample for sample in ours if sample.done > ours[0].done] or ours
        third = max(1, len(moving) // 3)
        found.append(
            {
                "start": start,
                "first_third_mb": statistics.median(one.own_bytes for one in moving[:third]) / 1e6,
                "last_third_mb": statistics.median(one.own_bytes for one in moving[-third:]) / 1e6,
                "peak_mb": max(one.own_bytes for one in ours) / 1e6,
                "peak_with_libraries_mb": max(one.all_bytes for one in ours) / 1e6,
            }
        )
    return found


def render(result: dict[str, Any]) -> str:
    """As Markdown."""
    features_mb = result["images"] * _FEATURES * 4 / 1e6
    lines = [
        "# `byol embed` of many files, killed and continued",
        "",
        f"`{result['command']}`, {result['date']}",
        "",
        *(["Made with --tiny: the figures mean nothing.", ""] if result["tiny"] else []),
        *machine_lines(result["machine"]),
        f"- {result['images']:,} PNG files of {_PX} px, one in {_BROKEN_EACH:,} broken; {_FEATURES} features "
        f"({features_mb:,.1f} MB in all); the table has {result['table_bytes'] / 1e6:,.1f} MB",
        "",
        "| start | images | ended by | seconds | images/s | own memory, first third | last third | peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for place, (start, memory) in enumerate(zip(result["starts"], result["memory"], strict=True)):
        number = start["to"] - start["from"]
        ended = {0: "itself", -9: "SIGKILL", -15: "SIGTERM"}.get(start["exit_code"], start["exit_code"])
        lines.append(
            f"| {place + 1} | {start['from']:,} to {start['to']:,} | {ended} | {start['seconds']:.0f} "
            f"| {number / start['seconds']:,.0f} | {memory['first_third_mb']:.0f} MB "
            f"| {memory['last_third_mb']:.0f} MB | {memory['peak_mb']:.0f} MB |"
        )
    lines += ["", *(f"- {'yes' if good else 'NO'}: {what}" for what, good in result["found"].items()), ""]
    peak_mb = max(one["peak_with_libraries_mb"] for one in result["memory"])
    lines += [
        "Thirds are of the time from the first saved images to the end of the process. Seconds include the "
        "start of the process and opening the folder, and at the last start writing the table. With the "
        f"files of libraries the peak is {peak_mb:,.0f} MB.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
