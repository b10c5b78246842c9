"""The parts of benchmarks/gpu.sh: run those that are not done, as many as the minutes of a call allow.

RESULTS/PART/ holds a part's output, its `log.txt` and its `state.json`. A part whose state is "running" was
cut off; it is repeated, or continued if it is a training run. RESULTS/summary.md tells how far everything is.

Exit status: 0 all done, 1 some part has failed and none remains, 2 wrong arguments, 3 parts remain.
"""

import argparse
import ctypes
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
EXIT_FAILED, EXIT_USAGE, EXIT_REMAIN = 1, 2, 3
_LIMIT_S = 460.0  # of one part, so that it fits a call of 8 minutes
_GRACE_S = 20.0  # after SIGTERM, for a training run to save; kept free at the end of a call
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Part:
    """One folder of results. `steps` are named commands, run one after the other in the repository's root."""

    name: str
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    expect_s: float = 60.0  # with less time left it waits for the next call
    limit_s: float = _LIMIT_S  # a part that takes longer has failed
    run_dir: Path | None = None  # of a training run, which continues in as many calls as it needs
    keep: Path | None = None  # a file to copy into the folder of results
    after: str | None = None  # the part that has to be done before
    missing: str | None = None  # what it lacks here; then it is left out


@dataclass
class State:
    """What is known of a part; `seconds` by step, over all calls."""

    state: Literal["running", "done", "failed"] = "running"
    why: str = ""
    calls: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "State | None":
        path = folder / "state.json"
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def write(self, folder: Path) -> None:
        _write(folder / "state.json", json.dumps(asdict(self), indent=1) + "\n")


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
    limit = [] if options.tiny else ["--limit-s", str(round(_LIMIT_S - 60.0))]

    def measure(name: str, script: str, *arguments: str, expect_s: float) -> Part:
        out = ["--out", str(options.results / name)]
        return Part(name, (("run", _python(f"benchmarks/{script}.py", *arguments, *out)),), expect_s)

    def throughput(setting: str) -> Part:
        flags = ["--setting", setting, *device, *size, *workers, *limit, *work]
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
        measure("packing", "packing", *size[: options.tiny], expect_s=120),
        measure("evaluation", "evaluation", *device, *size, *work, expect_s=120),
        _test("tests-method", "tests/method/test_optim.py" if options.tiny else "tests/method"),
    ]


def _test(name: str, *arguments: str) -> Part:
    return Part(name, (("run", _python("-m", "pytest", *_PYTEST, *arguments)),))


def _find_gpu_tests() -> list[str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "@pytest.mark.gpu" in path.read_text()]


# Other plugins of the machine are left out, and warnings of other versions are no failures.
_PYTEST = ("-q", "-p", "jaxtyping._pytest_plugin", "-p", "no:cacheprovider", "-W", "default", "-rs")

_TINY_RUN = (
    "network.name=resnet10t",
    "network.projection_head.mlp_hidden_size=32",
    "network.projection_head.projection_size=16",
    "data_transforms.input_shape=[16,16,3]",
    "trainer.batch_size=16",
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


# ---- How it is run


def run_parts(
    parts: Sequence[Part],
    results: Path,
    *,
    deadline: float,
    environment: dict[str, str],
    retry: bool = False,
    pass_fds: tuple[int, ...] = (),
) -> int:
    """Run the parts that are not settled, until `deadline` of time.monotonic(); the exit status."""
    runner = _Runner(results, environment, pass_fds)
    again, ran = {"remains", "failed"} if retry else {"remains"}, False
    for part in parts:
        if _judge(part, results)[0] not in again or (part.after and not _is_done(results / part.after)):
            continue
        left_s = deadline - time.monotonic() - _GRACE_S
        # The first of a call has the whole of it; if that is too little, it never will be enough.
        if left_s > 0.0 and (left_s >= part.expect_s or not ran):
            runner.run(part, allowed_s=min(left_s, part.limit_s), whole_call=not ran)
            ran = True
    text, code = summarise(parts, results)
    _write(results / "summary.md", text)
    print(f"\n{text}\n{_ADVICE[code]}", flush=True)
    return code


_ADVICE = {
    0: "all parts are done",
    EXIT_FAILED: "no part remains, but some have failed: see their log.txt; --retry runs them again",
    EXIT_REMAIN: "parts remain: the same command goes on",
}


class _Runner:
    """Runs the steps of parts as processes that end with this one."""

    def __init__(self, results: Path, environment: dict[str, str], pass_fds: tuple[int, ...]) -> None:
        self._results, self._environment, self._pass_fds = results, environment, pass_fds

    def run(self, part: Part, *, allowed_s: float, whole_call: bool) -> None:
        """Leaves `done`, `failed`, or `running` for what goes on in the next call."""
        print(f"{part.name} ...", flush=True)
        folder, start = self._results / part.name, time.monotonic()
        continued = State.read(folder) if part.run_dir is not None and part.run_dir.exists() else None
        if continued is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        state = continued or State()
        state.state, state.why, state.calls = "running", "", state.calls + 1
        for step, command in part.steps:
            code = self._run_step(step, command, folder, state=state, until=start + allowed_s)
            if part.run_dir is not None:
                collect_run(part.run_dir, folder)
            if code is None:
                if part.run_dir is None and (whole_call or allowed_s == part.limit_s):
                    state.state, state.why = "failed", f"{step}: not finished after {allowed_s:.0f} s"
                break
            if code != 0:
                state.state, state.why = "failed", f"{step}: exit status {code}; {_last_line(folder)}"
                break
        else:
            state.state = "done"
            if part.keep is not None:
                shutil.copy(part.keep, folder / part.keep.name)
        state.write(folder)
        print(f"{part.name}: {_tell(state)}, {time.monotonic() - start:.0f} s of this call", flush=True)

    def _run_step(
        self, step: str, command: tuple[str, ...], folder: Path, *, state: State, until: float
    ) -> int | None:
        """The exit status; None if the time ran out."""
        before_s, start = state.seconds.get(step, 0.0), time.monotonic()
        with (folder / "log.txt").open("a") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=self._pass_fds,
                preexec_fn=_end_with_parent,
            )
            try:
                code = None
                while code is None and time.monotonic() < until:
                    state.seconds[step] = round(before_s + time.monotonic() - start, 1)
                    state.write(folder)  # a kill at any moment loses 2 s of the sum at most
                    code = _wait(process, min(2.0, max(until - time.monotonic(), 0.0)))
                return code
            finally:
                _end(process)
                state.seconds[step] = round(before_s + time.monotonic() - start, 1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, so that a training run saves; then SIGKILL, also for what the process has started."""
    process.terminate()
    _wait(process, _GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(process: "subprocess.Popen[bytes]", timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _last_line(folder: Path) -> str:
    lines = (folder / "log.txt").read_text(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


# ---- What is told


def summarise(parts: Sequence[Part], results: Path) -> tuple[str, int]:
    """A Markdown table of all parts, and the exit status that it means."""
    rows, words = [], set()
    for part in parts:
        word, note = _judge(part, results)
        state = State.read(results / part.name) or State()
        seconds = ", ".join(f"{step} {s:.0f}" for step, s in state.seconds.items())
        rows.append(f"| {part.name} | {word} | {seconds} | {note.replace('|', '/')} |")
        words.add(word)
    code = EXIT_REMAIN if "remains" in words else EXIT_FAILED if "failed" in words else 0
    return "\n".join(["| part | state | seconds | |", "|---|---|---|---|", *rows, ""]), code


def _judge(part: Part, results: Path) -> tuple[Literal["done", "failed", "remains", "left out"], str]:
    """How a part stands, and why."""
    state = State.read(results / part.name)
    earlier = State.read(results / part.after) if part.after is not None else None
    if part.missing is not None:
        return "left out", part.missing
    if earlier is not None and earlier.state == "failed":
        return "failed", f"needs {part.after}"
    if state is None or state.state == "running":
        return "remains", _tell_run(results / part.name)
    return state.state, state.why or _tell_run(results / part.name)


def _tell(state: State) -> str:
    if state.state == "running":
        return "cut off, goes on in the next call"
    return state.state + (f" ({state.why})" if state.why else "")


def _tell_run(folder: Path) -> str:
    path = folder / "training.json"
    if not path.exists():
        return ""
    run = json.loads(path.read_text())
    return (
        f"{run['done']} of {run['total_steps']} steps in {run['loop_s']:.0f} s of training, "
        f"so {run['whole_run_s']:.0f} s for all"
    )


def collect_run(run_dir: Path, folder: Path) -> None:
    """The small files of a training run, and how long its steps took, into the folder of results.

    `loop_s` is the time of the steps alone, from the rates in metrics.jsonl; `whole_run_s` the same for all
    steps, extrapolated while the run is not at its end.
    """
    for name in ("config.yaml", "metrics.jsonl"):
        if (run_dir / name).exists():
            shutil.copy(run_dir / name, folder / name)
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not lines:
        return
    config = (run_dir / "config.yaml").read_text()
    batch, epochs = _number(config, "batch_size"), _number(config, "max_epochs")
    done, loop_s = 0, 0.0
    for line in lines:
        loop_s += (line["done"] - done) * batch / line["images_per_s"]
        done = line["done"]
    total_steps = epochs * round(done / lines[-1]["epoch"])
    content: dict[str, Any] = {
        "done": done,
        "total_steps": total_steps,
        "loop_s": round(loop_s, 1),
        "whole_run_s": round(loop_s * total_steps / done, 1),
        "images_per_s": round(done * batch / loop_s, 1),
        "data_wait": round(sum(line["data_wait"] for line in lines) / len(lines), 4),
    }
    _write(folder / "training.json", json.dumps(content, indent=1) + "\n")


def _number(config: str, key: str) -> int:
    found = re.search(rf"^ *{key}: (\d+)", config, re.MULTILINE)
    assert found is not None
    return int(found[1])


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
        _write(path, wanted)
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


def _is_done(folder: Path) -> bool:
    state = State.read(folder)
    return state is not None and state.state == "done"


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
