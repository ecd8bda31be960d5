"""What holds for every test: one torch thread, GPU tests only with a GPU, and no global state left behind."""

import os
import random
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch
from beartype._check.code import codemain as checker

# The type checker looks at one random item of a list, drawn from Python's global stream. Its own stream keeps it from
# being taken for the library, whose hands must be off that stream; tests/test_harness.py sees that this still works.
checker.getrandbits = random.Random(0).getrandbits

# The same cases in every run, and no time limits: the machine may be busy.
hypothesis.settings.register_profile("bayesmeta", derandomize=True, deadline=None)
hypothesis.settings.load_profile("bayesmeta")

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Iterator[None]:
    """The library keeps nothing in Pyro's global parameter store and never changes torch's default dtype."""
    yield
    assert torch.get_default_dtype() == torch.float32, "torch's default dtype was changed"
    if "pyro" in sys.modules:
        import pyro

        names = list(pyro.get_param_store().keys())
        pyro.clear_param_store()
        assert not names, f"Pyro's global parameter store holds {names}: parameters belong to modules"
