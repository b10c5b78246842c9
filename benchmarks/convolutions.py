"""What PyTorch computes wrongly on a kind of CPU: convolutions and other operations against float64.

    python benchmarks/convolutions.py --quick --out runs/convolutions      # two minutes
    python benchmarks/convolutions.py --out benchmarks/results/convolutions
    python benchmarks/convolutions.py --ours --quick --out runs/ours       # the package's layers instead

Each kind of CPU that this machine can play (ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY, which the package's
kernels follow) computes the same cases, drawn from `--seed`, in processes of its own under glibc's malloc
checks. A crash or a hang ends one process alone, whose cases then run singly, each in its own process. A case
counts as wrong where it is further from float64 than 1e-4 of the largest value (bfloat16: 2e-2).
"""

import argparse
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command import names_of, new_parser, save_result
from measure import describe_command, describe_machine, machine_lines

# Kind of CPU: flag of /proc/cpuinfo that it needs, oneDNN's name, PyTorch's, and that of g++.
_KINDS = {
    "SSE4.1": ("sse4_1", "SSE41", "default"),
    "AVX": ("avx", "AVX", "default"),
    "AVX2": ("avx2", "AVX2", "avx2"),
    "AVX2-VNNI": ("avx_vnni", "AVX2_VNNI", "avx2"),
    "AVX512": ("avx512bw", "AVX512_CORE", "avx512"),
    "AVX512-VNNI": ("avx512_vnni", "AVX512_CORE_VNNI", "avx512"),
    "AVX512-bf16": ("avx512_bf16", "AVX512_CORE_BF16", "avx512"),
    "AMX": ("amx_bf16", "AVX512_CORE_AMX", "avx512"),
    "native": (None, None, None),
}
_BATCH = 40  # cases in one process
_LIMIT_CPU_S = 20  # of one process
_LIMIT_S, _ALONE_LIMIT_S = 30.0, 8.0  # threads that wait for each other for ever may sleep
_ENDS = ("crashed", "hung")
_REPEATS = 3  # of each case: what is read outside of memory is not always wrong


def main() -> int:
    options = _parse()
    if options.serve is not None:
        return _serve(json.loads(options.serve))
    start, found = time.monotonic(), {}
    for kind in options.kinds:
        for threads in (1, 2):
            share = {1: 2 / 3, 2: 1 / 3}[threads]
            job = {
                "seed": options.seed + threads,
                "convolutions": round(options.convolutions * share),
                "operations": 0 if options.ours else round(options.operations * share),
                "threads": threads,
                "ours": options.ours,
            }
            outcomes = run_kind(kind, job)
            found[f"{kind}, {threads} thread{'s' * (threads > 1)}"] = outcomes
            counts = Counter(outcome["outcome"] for outcome in outcomes)
            print(f"{kind}, {threads}: {dict(counts)}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    machine = describe_machine(threads=2)
    table = _show(found, machine, ours=options.ours)
    bad = {kind: [one for one in outcomes if one["outcome"] != "right"] for kind, outcomes in found.items()}
    tried = {kind: len(outcomes) for kind, outcomes in found.items()}
    result = {"format": 1, **describe_command(), "machine": machine, "tried": tried, "not right": bad}
    save_result(result, table, options.out)
    return 0


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases, under two minutes")
    parser.add_argument("--ours", action="store_true", help="layers that the package has accelerated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=names_of(_KINDS), default=list_kinds())
    parser.add_argument("--convolutions", type=int, help="cases for each kind of CPU")
    parser.add_argument("--operations", type=int, help="cases of other operations for each kind of CPU")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    few = options.quick or options.tiny
    options.convolutions = options.convolutions or (60 if options.tiny else 500 if few else 5000)
    options.operations = options.operations or (21 if options.tiny else 84 if few else 630)
    return options


def list_kinds() -> list[str]:
    """The kinds of CPU that this machine can play."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    except OSError:  # not Linux: what it is, and nothing else
        return ["native"]
    return [kind for kind, (flag, *_) in _KINDS.items() if flag is None or flag in flags]


def set_kind(kind: str, *, threads: int) -> dict[str, str]:
    """The environment in which a process computes as on this kind of CPU, with glibc's malloc checks."""
    names = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    found = {name: value for name, value in os.environ.items() if name not in names}
    found |= {name: value for name, value in zip(names, _KINDS[kind][1:], strict=True) if value is not None}
    found |= {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # two threads on one core do not wait for each other in circles
        "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.perturb=165",
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "165",  # new memory holds 1.5e16: what is read too early shows
        "LD_PRELOAD": " ".join(filter(None, (os.environ.get("LD_PRELOAD"), _find_malloc_checks()))),
    }
    return found


def _find_malloc_checks() -> str | None:
    """The library that holds them since glibc 2.34."""
    folders = ("/lib", "/lib64", "/usr/lib64", "/usr/lib", f"/usr/lib/{os.uname().machine}-linux-gnu")
    found = (Path(folder) / "libc_malloc_debug.so.0" for folder in folders)
    return next((str(path) for path in found if path.exists()), None)


def run_kind(kind: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The outcome of every case: what it was, its errors, and one of right, wrong, crashed, hung."""
    command = [sys.executable, "-W", "ignore", __file__, "--out", os.devnull, "--serve", json.dumps(job)]
    environment = set_kind(kind, threads=job["threads"])
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


# ---- In the process of a kind of CPU. It never computes by itself: only its forks do, so that they can.


def _serve(job: dict[str, Any]) -> int:
    import torch
    from library_cases import draw_convolutions, draw_operations

    torch.set_num_threads(job["threads"])
    cases = [
        *draw_convolutions(job["convolutions"], seed=job["seed"]),
        *draw_operations(job["operations"], seed=job["seed"]),
    ]
    if job["ours"]:
        from byol.kernels.build import load_kernels

        load_kernels()
    while cases:
        outcomes = _run_in_fork(cases[:_BATCH], ours=job["ours"], limit_s=_LIMIT_S)
        if outcomes[-1]["outcome"] in _ENDS:
            alone = _run_alone(cases[len(outcomes) - 1], ours=job["ours"])
            if alone["outcome"] != "right":
                outcomes[-1] = alone
            else:  # an earlier one has spoilt the memory
                outcomes = [_run_alone(case, ours=job["ours"]) for case in cases[: len(outcomes)]]
        for outcome in outcomes:
            print(json.dumps(outcome), flush=True)
        cases = cases[len(outcomes) :]
    return 0


def _run_alone(case: Any, *, ours: bool) -> dict[str, Any]:
    return _run_in_fork([case], ours=ours, limit_s=_ALONE_LIMIT_S)[0]


def _run_in_fork(cases: Sequence[Any], *, ours: bool, limit_s: float) -> list[dict[str, Any]]:
    """The outcomes up to and with the first case that crashes or hangs."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            _compute(cases, ours=ours, pipe=write)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    text, hung, end = b"", False, time.monotonic() + limit_s
    while select.select([read], [], [], max(end - time.monotonic(), 0.0))[0]:
        part = os.read(read, 1 << 16)
        if not part:
            break
        text += part
    else:
        hung = True
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(child, 0)
    hung = hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
    outcomes: list[dict[str, Any]] = [json.loads(line) for line in text.decode().splitlines()]
    if len(outcomes) < len(cases) or status != 0:
        # Of a crash behind the last case, which is that of the end of the process, the last case is accused.
        accused = cases[min(len(outcomes), len(cases) - 1)]
        outcomes = [*outcomes[: len(cases) - 1], _outcome(accused, "hung" if hung else "crashed", {})]
    return outcomes


def _compute(cases: Sequence[Any], *, ours: bool, pipe: int) -> None:
    import torch
    from library_cases import TOLERANCES

    resource.setrlimit(resource.RLIMIT_CPU, (_LIMIT_CPU_S, _LIMIT_CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # glibc's last words
    for number, case in enumerate(cases):
        torch.manual_seed(number)
        try:
            errors = case.errors(ours=ours, repeats=_REPEATS)
        except RuntimeError as error:
            errors = {" ".join(str(error).split())[:200]: float("inf")}
        wrong = {name: value for name, value in errors.items() if value > TOLERANCES[case.dtype]}
        outcome = _outcome(case, "wrong" if wrong else "right", wrong)
        os.write(pipe, (json.dumps(outcome) + "\n").encode())


def _outcome(case: Any, outcome: str, errors: dict[str, float]) -> dict[str, Any]:
    return {"outcome": outcome, "errors": errors, "case": case.describe(), "shape": asdict(case)}


# ---- The table


def _show(found: dict[str, list[dict[str, Any]]], machine: dict[str, Any], *, ours: bool) -> str:
    lines = [
        f"# {'Accelerated layers' if ours else 'PyTorch'} against float64",
        "",
        *machine_lines(machine),
        f"- oneDNN {_onednn_version()}",
        "",
        "| kind of CPU | cases | wrong | crashed | hung |",
        "|---|---|---|---|---|",
    ]
    bad: dict[str, list[str]] = {}
    for kind, outcomes in found.items():
        counts = Counter(outcome["outcome"] for outcome in outcomes)
        cells = (counts["wrong"], counts["crashed"], counts["hung"])
        lines.append(f"| {kind} | {len(outcomes)} | {' | '.join(map(str, cells))} |")
        for outcome in outcomes:
            if outcome["outcome"] != "right":
                what = ", ".join(f"{name} {value:.2g}" for name, value in outcome["errors"].items())
                bad.setdefault(outcome["case"], []).append(f"{kind}: {outcome['outcome']} {what}".rstrip())
    lines += ["", "## Which", ""] if bad else ["", "All are right."]
    lines += [f"- {case}: {'; '.join(kinds)}" for case, kinds in sorted(bad.items())]
    return "\n".join(lines) + "\n"


def _onednn_version() -> str:
    import torch

    found = re.search(r"MKL-DNN v([\w.]+)", torch.__config__.show())
    return found.group(1) if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
