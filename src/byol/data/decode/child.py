"""A process of Python that answers requests over its standard input and output."""

import os
import subprocess
import sys
from contextlib import suppress


class Child:
    """The process, which runs a program; subclasses say what is asked and answered."""

    def __init__(self, program: str, *, quiet: bool = False) -> None:
        """`quiet`: whether its standard error is dropped."""
        # -P: modules in the current folder must not replace those of libraries.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def end(self) -> None:
        """Kill it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        for stream in (self.input, self.output):
            with suppress(OSError):  # buffered data can no longer be written
                stream.close()
