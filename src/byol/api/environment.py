"""`byol env`: facts about the machine for a bug report, without information about the user."""

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from byol.api.probe import run_probes
from byol.base.packages import OPTIONAL, REQUIRED
from byol.base.version import SOURCE, __version__
from byol.device import host, memory

FORMAT = 1
# Variables that change the speed, the device or the libraries of the computation.
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY",
    "OMP_PROC_BIND", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "CXX",
    "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "PYTORCH_ENABLE_MPS_FALLBACK",
)  # fmt: skip
# An absolute path, of which only the last name is shown.
_PATH = re.compile(r"""(?<![\w.~])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:;,'"()<>]+)+[/\\]([^\s/\\:;,'"()<>]+)""")
_EVERYBODY = ("root", "runner", "localhost")  # names that identify nobody


@dataclass(frozen=True, repr=False)
class Environment:
    """Versions, CPU, memory, GPUs, kernels and threads of this machine, for a bug report.

    `print(byol.environment())` shows them as text, without the names of user, host and folders.
    """

    facts: Mapping[str, Any]  # by section; can be written as JSON

    def __repr__(self) -> str:
        return f"<byol.Environment: byol {self.facts['byol']['version']}, {len(self.problems)} problems>"

    def __str__(self) -> str:
        return self.render()

    @property
    def problems(self) -> list[str]:
        """A line for each library or fact that could not be loaded or found; [] if there are no problems."""
        return list(self.facts["problems"])

    def render(self) -> str:
        """Return everything as plain text, as `byol env` prints it."""
        return "\n".join(f"{name:<10}{value}" for name, value in _describe(self.facts))

    def to_json(self) -> str:
        """Return everything as JSON, as `byol env --json` prints it."""
        return json.dumps(self.facts, indent=1, ensure_ascii=False)


def environment() -> Environment:
    """Describe the machine and the installation, for a bug report.

    A child process loads every library once, which takes a few seconds, and compiles the kernels if they are
    not in the cache. Nothing is raised: each missing or broken part is a line of `problems`.
    """
    found, problems = run_probes()
    facts: dict[str, Any] = {"format": FORMAT}
    for section, collect in SECTIONS.items():
        try:
            facts[section] = collect()
        except Exception as error:  # an unusual system: report the other sections anyway
            facts[section] = {}
            problems.append(f"{section}: {type(error).__name__}: {error}")
    facts["byol"].setdefault("version", __version__)
    facts["cpu"]["instruction_set"] = found.get("instruction set")
    facts["gpus"] = found.get("gpus", [])
    facts["torch_build"] = found.get("build of torch", {})
    facts["kernels"] = {**found.get("kernels", {}), "compiler": found.get("compiler")}
    facts["threads"] = {**found.get("threads", {}), "variables": _read_variables()}
    facts["problems"] = problems
    cleaned: dict[str, Any] = _clean(facts, _list_private_names())
    return Environment(cleaned)


# ---- Facts


def describe_byol() -> dict[str, Any]:
    root = SOURCE.parent
    is_checkout = (root / ".git").exists() and (root / "pyproject.toml").exists()
    commit, changed = _ask_git(root) if is_checkout else (None, None)
    return {"version": __version__, "checkout": is_checkout, "commit": commit, "changed": changed}


def _ask_git(root: Path) -> tuple[str | None, bool | None]:
    """Return the commit of a checkout, and whether files differ from it; None if git is not installed."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        return ask("rev-parse", "--short=12", "HEAD"), bool(ask("status", "--porcelain", "-uno"))
    return None, None


def _describe_system() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "virtual_environment": sys.prefix != sys.base_prefix,
        "conda": "CONDA_PREFIX" in os.environ,
        "system": platform.platform(),
        "machine": platform.machine(),
    }


def _describe_cpu() -> dict[str, Any]:
    return {
        "model": host.name_cpu(),
        "cores": os.cpu_count(),
        "usable_cores": host.count_cores(),
        "container_cores": host.cpu_quota(),
        "features": host.list_cpu_features(),
    }


def _describe_memory() -> dict[str, int | None]:
    total, limit = memory.total_bytes()
    return {
        "total_bytes": total,
        "available_bytes": memory.available_bytes(),
        "container_limit_bytes": limit,
    }


def _describe_disk() -> dict[str, int]:
    return {"free_bytes": shutil.disk_usage(Path.cwd()).free}


def _find_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package; None if it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _read_variables() -> dict[str, str]:
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "byol": describe_byol,
    "system": _describe_system,
    "cpu": _describe_cpu,
    "memory": _describe_memory,
    "disk": _describe_disk,
    "packages": lambda: _find_versions(REQUIRED),
    "optional": lambda: _find_versions(OPTIONAL),
}


# ---- Removing names of the user


def _list_private_names() -> list[str]:
    """Return the names of the user and of the machine, the longest first."""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "COMPUTERNAME")}
    with suppress(Exception):  # no such user
        names.add(getpass.getuser())
    with suppress(Exception):  # no home folder
        names.add(Path.home().name)
    names |= {platform.node(), platform.node().partition(".")[0]}
    return sorted((name for name in names if len(name) > 2 and name not in _EVERYBODY), key=len, reverse=True)


def _clean(value: Any, names: list[str]) -> Any:
    """Return the facts without these names and without folders."""
    if isinstance(value, dict):
        return {key: _clean(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, names) for item in value]
    if not isinstance(value, str):
        return value
    with suppress(Exception):  # no home folder
        value = value.replace(str(Path.home()), "~")
    for name in names:
        value = re.sub(
            rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "...", value, flags=re.IGNORECASE
        )
    return _PATH.sub(r".../\1", value)


# ---- As text


def _describe(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Iterate over the names and values of the lines."""
    yield "byol", _say_byol(facts["byol"])
    yield "python", _say_python(facts["system"])
    yield "system", facts["system"].get("system", "unknown")
    yield "cpu", _say_cpu(facts["cpu"])
    yield "memory", _say_memory(facts["memory"])
    yield "gpu", _say_gpus(facts["gpus"], facts["torch_build"])
    kernels = facts["kernels"]
    yield "kernels", f"{kernels.get('in_use', 'unknown')}; compiler: {kernels['compiler'] or 'none'}"
    yield "threads", _say_threads(facts["threads"])
    yield "disk", f"{_say_bytes(facts['disk'].get('free_bytes'))} free in the current folder"
    yield "packages", _say_versions(facts["packages"])
    yield "optional", _say_versions(facts["optional"])
    for problem in facts["problems"] or ["none"]:
        yield "problem" if facts["problems"] else "problems", problem


def _say_byol(byol: Mapping[str, Any]) -> str:
    if not byol.get("checkout"):
        return str(byol["version"])
    commit = byol["commit"] or "unknown"
    return f"{byol['version']}, checkout of commit {commit}{' with changes' if byol['changed'] else ''}"


def _say_python(system: Mapping[str, Any]) -> str:
    if not system:
        return "unknown"
    place = (
        "conda" if system["conda"] else "virtual environment" if system["virtual_environment"] else "system"
    )
    return f"{system['python']} ({system['implementation']}, {place})"


def _say_cpu(cpu: Mapping[str, Any]) -> str:
    if "model" not in cpu:
        return "unknown"
    limit = cpu["container_cores"]
    parts = [
        cpu["model"],
        f"{cpu['usable_cores']} of {cpu['cores']} cores" + ("" if limit is None else f", limit {limit:g}"),
        f"torch computes with {cpu['instruction_set'] or 'unknown'}",
        " ".join(cpu["features"]),
    ]
    return "; ".join(filter(None, parts))


def _say_memory(amounts: Mapping[str, int | None]) -> str:
    limit = amounts.get("container_limit_bytes")
    return (
        f"{_say_bytes(amounts.get('total_bytes'))}, {_say_bytes(amounts.get('available_bytes'))} available"
        + ("" if limit is None else f", limit of the container {_say_bytes(limit)}")
    )


def _say_gpus(gpus: list[Mapping[str, Any]], build: Mapping[str, str | None]) -> str:
    named = [f"{gpu['name']} ({gpu['kind']}, {_say_bytes(gpu['memory_bytes'])})" for gpu in gpus]
    if not build:
        return "unknown, because torch cannot be loaded"
    built = [f"{name} {build[name]}" for name in ("cuda", "hip", "cudnn") if build.get(name)]
    return f"{', '.join(named) or 'none'}; torch is built for {', '.join(built) or 'CPUs only'}"


def _say_threads(threads: Mapping[str, Any]) -> str:
    variables = ", ".join(f"{name}={value}" for name, value in threads["variables"].items())
    if "within_an_operation" not in threads:
        return variables or "unknown"
    numbers = (
        f"torch uses {threads['within_an_operation']}, {threads['between_operations']} between operations"
    )
    return f"{numbers}; {variables}" if variables else numbers


def _say_versions(versions: Mapping[str, str | None]) -> str:
    there = ", ".join(f"{name} {found}" for name, found in versions.items() if found is not None)
    missing = ", ".join(name for name, found in versions.items() if found is None)
    return "; ".join(filter(None, (there, missing and f"not installed: {missing}")))


def _say_bytes(amount: int | None) -> str:
    return "unknown" if amount is None else f"{amount / 1e9:.1f} GB"
