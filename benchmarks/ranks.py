"""One rank of `scaling.py --what ranks`: trains under torchrun and lets rank 0 write down the times.

Started as `torchrun ranks.py JOB SECONDS CHUNKS OUT`.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from measure import read_own_peak_bytes
from systems import Job
from systems.ours import System

_WARM_UP_STEPS = {"cpu": 2, "cuda": 20}


def main() -> None:
    job = Job.from_json(sys.argv[1])
    seconds, num_chunks, out = float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(job.threads)
    system = System(job)
    system.prepare()

    def run(steps: int) -> float:
        """Until all ranks are done."""
        start = time.perf_counter()
        for _ in range(steps):
            system.step()
        if job.device == "cuda":
            torch.cuda.synchronize()
        system.ranks.wait()
        return time.perf_counter() - start

    run(_WARM_UP_STEPS[job.device])
    steps = torch.tensor(max(1, round(seconds / run(1))))
    if system.ranks.world_size > 1:  # as many on every rank
        dist.broadcast(steps, 0, group=system.ranks.patient)
    chunks = [run(int(steps)) for _ in range(num_chunks)]
    if system.ranks.is_main:
        answer = {"steps": int(steps), "seconds": chunks, "peak_bytes": read_own_peak_bytes()}
        out.write_text(json.dumps(answer))
    system.close()


if __name__ == "__main__":
    main()
