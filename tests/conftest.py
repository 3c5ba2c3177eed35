"""Eight CPU devices, strict ranks, and no silent warnings, set once before any backend starts."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


TESTS = Path(__file__).parent
# Files of a few long tests: begun first, so that no process is alone with one of them at the end.
LONGEST = (
    "test_tpu_lowering.py",
    "launch/test_stages.py",
    "launch/test_kill.py",
    "model/test_mesh.py",
)


def pytest_collection_modifyitems(items):
    """Puts the tests of LONGEST first; the others stay in their order."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(str(item.path.relative_to(TESTS)), len(LONGEST)))


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles in half the time; what is compiled runs a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
