"""Running parts as processes: each once, ended with this one, its state on disk at every moment.

RESULTS/PART/ holds a part's output, its `log.txt` and its `state.json`. A part whose state is "running" was
cut off; it is repeated, or continued if it is a training run. RESULTS/summary.md tells how far everything is.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
EXIT_FAILED, EXIT_REMAIN = 1, 3
LIMIT_S = 460.0  # of one part, so that it fits a call of 8 minutes
GRACE_S = 20.0  # after SIGTERM, for a training run to save; kept free at the end of a call
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Part:
    """One folder of results. `steps` are named commands, run one after the other in the repository's root."""

    name: str
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    expect_s: float = 60.0  # with less time left it waits for the next call
    limit_s: float = LIMIT_S  # a part that takes longer has failed
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
        write_text(folder / "state.json", json.dumps(asdict(self), indent=1) + "\n")


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
        left_s = deadline - time.monotonic() - GRACE_S
        # The first of a call has the whole of it; if that is too little, it never will be enough.
        if left_s > 0.0 and (left_s >= part.expect_s or not ran):
            runner.run(part, allowed_s=min(left_s, part.limit_s), whole_call=not ran)
            ran = True
    text, code = summarise(parts, results)
    write_text(results / "summary.md", text)
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
    _wait(process, GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
    write_text(folder / "training.json", json.dumps(content, indent=1) + "\n")


def _number(config: str, key: str) -> int:
    found = re.search(rf"^ *{key}: (\d+)", config, re.MULTILINE)
    assert found is not None
    return int(found[1])


def _is_done(folder: Path) -> bool:
    state = State.read(folder)
    return state is not None and state.state == "done"


def write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
