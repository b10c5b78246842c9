"""Find the facts of `byol env` for which libraries must be loaded, in a child process.

A broken library can end the process that loads it. So the child reports after each step. If it dies, the
parent knows at which step, and starts another child for the remaining steps.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from byol.base.packages import REQUIRED

TIME_LIMIT_S = 300

Problems = list[str]


def run_probes() -> tuple[dict[str, Any], Problems]:
    """Run all steps of PROBES; return the result of each by name, and a line for each step that failed."""
    found: dict[str, Any] = {}
    problems: Problems = []
    waiting = list(PROBES)
    while waiting:
        answers, ending = _ask_child(waiting)
        for name, value, problem in answers:
            waiting.remove(name)
            if problem is None:
                found[name] = value
            else:
                problems.append(f"{name}: {problem}")
        if waiting:
            problems.append(f"{waiting.pop(0)}: {ending}")
    return found, problems


def _ask_child(names: list[str]) -> tuple[list[list[Any]], str]:
    """Start a child that runs these steps in order; return its answers, and a description of how it ended."""
    # -P: modules in the current folder must not replace those of libraries.
    command = [sys.executable, "-P", "-c", f"from {__name__} import answer; answer()", *names]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=TIME_LIMIT_S, check=False
        )
        said, ending = done.stdout, _explain_end(done.returncode)
    except subprocess.TimeoutExpired as error:
        said, ending = error.stdout or b"", f"no answer within {TIME_LIMIT_S} s"
    return [json.loads(line) for line in said.splitlines()], ending


def _explain_end(code: int) -> str:
    if code >= 0:
        return f"ended the Python process (exit code {code})"
    with suppress(ValueError):
        return f"ended the Python process ({signal.Signals(-code).name})"
    return f"ended the Python process (signal {-code})"


# ---- In the child


def answer() -> None:
    """Run the steps named on the command line; write one JSON line [name, value, problem] for each."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that text which a library prints is not read as an answer
    for name in sys.argv[1:]:
        value, problem = None, None
        try:
            value = PROBES[name]()
        except Exception as error:  # a broken library can raise anything
            problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        print(json.dumps([name, value, problem]), file=answers, flush=True)


def _import(module: str) -> Callable[[], None]:
    def load() -> None:
        import_module(module)

    return load


def _describe_torch() -> dict[str, str | None]:
    import torch

    backends: Any = torch.backends  # its functions have no type annotations
    cudnn = backends.cudnn.version() if backends.cudnn.is_available() else None
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def _list_gpus() -> list[dict[str, str | int]]:
    import torch

    from byol.device.devices import find_gpus, name_gpu

    gpus: list[dict[str, str | int]] = []
    for kind in find_gpus():
        for number in range(torch.get_device_module(kind).device_count()):
            device = torch.device(kind, number)
            gpus.append({"kind": kind, "name": name_gpu(device) or "", "memory_bytes": _memory_of(device)})
    return gpus


def _memory_of(device: Any) -> int:
    """Return the total memory of a GPU in bytes."""
    import torch

    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return int(torch.get_device_module(device).mem_get_info(device)[1])


def _describe_kernels() -> dict[str, Any]:
    from byol.kernels.build import explain_kernels, load_kernels

    return {"compiled": load_kernels() is not None, "in_use": explain_kernels()}


def _describe_compiler() -> str | None:
    from byol.kernels.build import describe_compiler

    return describe_compiler()


def _name_instruction_set() -> str:
    from byol.kernels.cpu import instruction_set

    return instruction_set()


def _count_threads() -> dict[str, int]:
    import torch

    return {
        "within_an_operation": torch.get_num_threads(),
        "between_operations": torch.get_num_interop_threads(),
    }


PROBES: Mapping[str, Callable[[], Any]] = {
    **{name: _import(module) for name, module in REQUIRED.items()},
    "build of torch": _describe_torch,
    "instruction set": _name_instruction_set,
    "gpus": _list_gpus,
    "compiler": _describe_compiler,
    "kernels": _describe_kernels,
    "threads": _count_threads,
}
"""The steps by name, in the order in which they run; their results can be written as JSON."""
