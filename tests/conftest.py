"""Shared by all tests: one thread (small tensors gain nothing from two), real images, a notebook."""

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images beside the repository; tests that need it are skipped where it is missing."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside this checkout")
    return folder


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook would show, in order, by stand-ins for IPython's `display` and for ipywidgets."""
    shown: list[str] = []

    def display(renderable: object) -> None:
        shown.append(getattr(renderable, "text", type(renderable).__name__))

    class Output:
        """A widget; what is printed within its `with` block goes through `display` as well."""

        def clear_output(self, wait: bool) -> None: ...
        def close(self) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    for name, content in (
        ("IPython", {}),
        ("IPython.display", {"display": display}),
        ("ipywidgets", {}),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content or {"Output": Output})
        monkeypatch.setitem(sys.modules, name, module)
    return shown
