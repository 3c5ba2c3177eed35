"""Eight CPU devices, strict ranks, and no silent warnings, set once before any backend starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Files of a few long tests: begun first, so that no process is alone with one of them at the end.
LONGEST = ("test_tpu_lowering", "test_launch_stages", "test_launch_kill", "test_model_mesh")


def pytest_collection_modifyitems(items):
    """Puts the tests of LONGEST first; the others stay in their order."""
    order = {stem: number for number, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles in half the time; what is compiled runs a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
