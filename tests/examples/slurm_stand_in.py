"""A stand-in for Slurm on one machine: runs a batch script with its `#SBATCH` lines, `srun` and `scontrol`.

What it does as Slurm does: `srun` starts a task per node with SLURM_PROCID and SLURM_NODEID and passes
signals on; `--signal=B:TERM@120` sends a signal to the batch script alone, 120 s before the time limit, at
which all is killed; `scontrol requeue` lets the script run again with SLURM_RESTART_COUNT.

What it does otherwise: the nodes are processes of this machine, with one CPU rank each instead of GPUs and a
free port. The time limit is near as soon as the test says so, not at an hour.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

JOB_ID = "17"


class Cluster:
    """Runs batch scripts; `folder` holds the stand-ins and what they have noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("srun", "scontrol"):
            path = folder / name
            words = shlex.join([sys.executable, __file__, name])
            path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            path.chmod(0o755)

    def run(
        self, script: Path, arguments: Sequence[str], *, nodes: int, near_limit: Sequence[Callable[[], bool]]
    ) -> list[int]:
        """Run a job until it is not queued again; return the exit code of each of its runs.

        Its n-th run is near its time limit when `near_limit[n]` is true; later runs end before theirs.
        """
        number, seconds = find_signal(script)
        may_requeue = "#SBATCH --requeue" in script.read_text(encoding="utf-8").splitlines()
        codes: list[int] = []
        while True:
            job = subprocess.Popen(
                [str(script), *arguments], env=self._environment(nodes, len(codes)), start_new_session=True
            )
            if len(codes) < len(near_limit):
                while job.poll() is None and not near_limit[len(codes)]():
                    time.sleep(0.02)
                if job.poll() is None:
                    os.kill(job.pid, number)  # B: the batch script alone
            try:
                codes.append(job.wait(timeout=seconds))
            finally:
                if job.poll() is None:  # the time limit
                    os.killpg(job.pid, signal.SIGKILL)
            if not (self.folder / "requeued").exists():
                return codes
            assert may_requeue and (self.folder / "requeued").read_text() == JOB_ID
            (self.folder / "requeued").unlink()

    def _environment(self, nodes: int, restarts: int) -> dict[str, str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return {
            **os.environ,
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": JOB_ID,
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
            "SLURM_RESTART_COUNT": str(restarts),
            "STAND_IN": str(self.folder),
            "STAND_IN_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }


def find_signal(script: Path) -> tuple[int, float]:
    """Return the signal of `#SBATCH --signal=B:NAME@SECONDS`, and the seconds."""
    found = re.search(r"^#SBATCH --signal=B:(\w+)@(\d+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return getattr(signal, f"SIG{found[1]}"), float(found[2])


def srun(words: list[str]) -> int:
    """Start the command once per node, and pass signals on to all."""
    assert words[0] == "torchrun"
    command = [sys.executable, "-m", "torch.distributed.run"]
    for word in words[1:]:
        word = re.sub(r"^(--nproc-per-node)=gpu$", r"\1=1", word)
        command.append(re.sub(r"^(--rdzv-endpoint=\w+):\d+$", rf"\1:{os.environ['STAND_IN_PORT']}", word))
    tasks = [
        subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(node), "SLURM_NODEID": str(node)})
        for node in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
    ]
    signal.signal(signal.SIGTERM, lambda number, _: [task.send_signal(number) for task in tasks])
    return max(abs(task.wait()) for task in tasks)


def scontrol(words: list[str]) -> int:
    """Name the hosts, all of them this machine, or queue the job again."""
    if words[0] == "requeue":
        (Path(os.environ["STAND_IN"]) / "requeued").write_text(words[1])
        return 0
    assert words == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    print("\n".join(["localhost"] * int(os.environ["SLURM_JOB_NUM_NODES"])))
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
