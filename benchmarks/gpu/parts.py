"""The parts of benchmarks/gpu.sh: which there are, and the call that runs those that are not done.

Exit status: 0 all done, 1 some part has failed and none remains, 2 wrong arguments, 3 parts remain.
"""

import argparse
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu.runner import LIMIT_S, ROOT, Part, run_parts, write_text

EXIT_USAGE = 2


def main(arguments: Sequence[str]) -> int:
    """Run what fits into this call, and tell what is done and what remains."""
    options = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)  # which ends what is running, too
    deadline = time.monotonic() + 60.0 * options.minutes
    options.results.mkdir(parents=True, exist_ok=True)
    with _alone_in(options.results) as lock:
        _claim(options)
        environment = make_environment(options)
        parts = list_parts(options)
        if options.only:
            wanted = {part.after for part in parts if part.name in options.only} | set(options.only)
            parts = [part for part in parts if part.name in wanted]
        return run_parts(
            parts,
            options.results,
            deadline=deadline,
            environment=environment,
            retry=options.retry,
            pass_fds=(lock,),
        )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", allow_abbrev=False)
    parser.add_argument("results", type=Path, help="folder of the results; another call continues there")
    parser.add_argument(
        "wheels", type=Path, nargs="?", help="folder of wheels to install for these runs alone"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="every part so small that its numbers mean nothing"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="length of this call (%(default)g)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of parts, with commas")
    parser.add_argument("--retry", action="store_true", help="run again what has failed")
    parser.add_argument("--cifar10", type=Path, help="folder with train/ and test/, or with those as .tar.gz")
    options = parser.parse_args(arguments)
    options.results = options.results.resolve()
    names = [part.name for part in list_parts(options)]
    unknown = set(options.only or ()) - set(names)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


# ---- What is run


def list_parts(options: argparse.Namespace) -> list[Part]:
    """All parts in the order of their use: what costs little, or tells most, comes first."""
    cores = os.cpu_count() or 1
    device = ["--device", options.device]
    work = ["--work", str(options.results / "work" / "benchmarks")]
    size = ["--tiny"] if options.tiny else ["--threads", str(cores)]
    workers = [] if options.tiny else ["--workers", str(max(1, cores - 2))]
    systems = ["--systems", "ours,classic"] if options.tiny else []
    limit = [] if options.tiny else ["--limit-s", str(round(LIMIT_S - 60.0))]

    def measure(name: str, script: str, *arguments: str, expect_s: float) -> Part:
        out = ["--out", str(options.results / name)]
        steps = (("run", _python(f"benchmarks/{script}.py", *arguments, *out)),)
        return Part(name, steps) if options.tiny else Part(name, steps, expect_s)

    def throughput(setting: str) -> Part:
        flags = ["--setting", setting, *device, *size, *workers, *systems, *limit, *work]
        return measure(f"throughput-{setting}", "throughput", *flags, expect_s=330)

    def breakdown(setting: str) -> Part:
        flags = ["--setting", setting, *device, *size, *work]
        return measure(f"breakdown-{setting}", "breakdown", *flags, expect_s=90)

    def variants(setting: str) -> Part:
        flags = ["--setting", setting, *device, *size[: options.tiny]]
        return measure(f"variants-{setting}", "gpu/variants", *flags, expect_s=300)

    def scaling(what: str) -> Part:
        flags = ["--what", what, *device, *size, *limit, *work]
        return measure(f"scaling-{what}", "scaling", *flags, expect_s=200)

    return [
        measure("environment", "gpu/environment", *device, expect_s=20),
        _test("tests-gpu", "-m", "gpu", *_find_gpu_tests()),
        *map(throughput, "abc"),
        *map(breakdown, "abc"),
        *map(variants, "ab"),
        *_cifar10(options),
        *_stl10(options),
        *map(scaling, ("rows", "view", "batch")),
        measure("packing", "packing", *size, *work, expect_s=200),
        measure("evaluation", "evaluation", *device, *size, *work, expect_s=300),
        _test(
            "tests-method",
            *(["tests/method/test_optimizers.py"] if options.tiny else ["tests/method", "tests/kernels"]),
        ),
    ]


def _test(name: str, *arguments: str) -> Part:
    return Part(name, (("run", _python("-m", "pytest", *_PYTEST, *arguments)),))


def _find_gpu_tests() -> list[str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "@pytest.mark.gpu" in path.read_text()]


# Other plugins of the machine are left out, and warnings of other versions are no failures.
# The options of pyproject.toml without pytest-xdist, which that machine lacks.
_OPTIONS = "--strict-markers --strict-config --jaxtyping-packages=byol,beartype.beartype"
_PYTEST = (
    "-q",
    "-o",
    f"addopts={_OPTIONS}",
    "-p",
    "jaxtyping._pytest_plugin",
    "-p",
    "no:cacheprovider",
    "-W",
    "default",
    "-rs",
)

_TINY_RUN = (
    "network.name=resnet10t",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,3]",
    "data_transforms.domain=null",
    "trainer.batch_size=16",
    "trainer.accumulation_steps=1",
    "trainer.max_epochs=2",
    "optimizer.warmup_epochs=1",
    "evaluation.num_bootstrap=10",
)


def _cifar10(options: argparse.Namespace) -> list[Part]:
    images = options.results / "work" / "cifar10"
    missing = None if options.cifar10 or options.tiny else "no folder given with --cifar10"
    given = ["--source", str(options.cifar10.resolve())] if options.cifar10 else []
    run_dir, train = _train(
        "cifar10", options, f"data.source={images / 'train'}", f"evaluation.test={images / 'test'}"
    )
    return [
        Part(
            "cifar10",
            (("images", _python("benchmarks/gpu/images.py", "cifar10", str(images), *given)), train),
            limit_s=math.inf,
            run_dir=run_dir,
            missing=missing,
        ),
        Part(
            "cifar10-eval",
            (("run", _python("-m", "byol", "eval", str(run_dir))),),
            expect_s=150,
            keep=run_dir / "eval.json",
            after="cifar10",
            missing=missing,
        ),
    ]


def _stl10(options: argparse.Namespace) -> list[Part]:
    images = options.results / "work" / "stl10.npy"
    count, px = (64, 16) if options.tiny else (105_000, 96)
    run_dir, train = _train("stl10", options, f"data.source={images}")
    shape = ["--count", str(count), "--px", str(px)]
    make = _python("benchmarks/gpu/images.py", "stl10", str(images), *shape)
    return [Part("stl10", (("images", make), train), limit_s=math.inf, run_dir=run_dir)]


def _train(
    name: str, options: argparse.Namespace, *overrides: str
) -> tuple[Path, tuple[str, tuple[str, ...]]]:
    run_dir = options.results / "work" / "runs" / name
    command = _python(
        *("-m", "byol", "train", f"benchmarks/gpu/{name}.yaml", "-o", str(run_dir)),
        *(f"trainer.device={options.device}", *overrides, *(_TINY_RUN if options.tiny else ())),
    )
    return run_dir, ("train", command)


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


# ---- The folder of results


def make_environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables of the parts: our source and the wheels on the path."""
    path = [str(ROOT / "src")]
    if options.wheels is not None:
        path.append(str(_install(options.wheels, options.results / "work" / "site")))
    if os.environ.get("PYTHONPATH"):
        path.append(os.environ["PYTHONPATH"])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


def _install(wheels: Path, site: Path) -> Path:
    """Unpack the wheels, without what they need, into a folder of their own."""
    if not site.exists():
        unfinished = site.with_name("site.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        found = sorted(map(str, wheels.glob("*.whl")))
        if not found:
            raise SystemExit(f"gpu.sh: no wheels in {wheels}; benchmarks/gpu/fetch_wheels.sh fetches them")
        flags = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile"]
        command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(unfinished), *found]
        subprocess.run(command, check=True)
        unfinished.rename(site)
    return site


def _claim(options: argparse.Namespace) -> None:
    """Tiny and full results, or those of two devices, do not go into one folder."""
    wanted = json.dumps({"device": options.device, "tiny": options.tiny})
    path = options.results / "options.json"
    if not path.exists():
        write_text(path, wanted)
    if path.read_text() != wanted:
        print(f"gpu.sh: {options.results} was begun with {path.read_text()}; choose another", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


@contextmanager
def _alone_in(results: Path) -> Iterator[int]:
    """A lock that lasts as long as this process and all it started."""
    with (results / "lock").open("w") as file:
        for attempt in range(60):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 59:
                    raise SystemExit(f"gpu.sh: another call is at work in {results}") from None
                time.sleep(0.5)
        yield file.fileno()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
