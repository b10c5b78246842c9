"""This package with PyTorch's own convolutions and norms."""

from dataclasses import replace

from systems import Job
from systems.ours import System as Ours


class System(Ours):
    """As a user has it who sets trainer.convolution=library."""

    description = "this package with `trainer.convolution=library`"

    def __init__(self, job: Job) -> None:
        super().__init__(replace(job, overrides=(*job.overrides, "trainer.convolution=library")))
