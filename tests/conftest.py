"""Eight CPU devices, strict ranks and dtypes, no silent warnings: set before a backend starts."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices on two cores that others use too can wait long for each other; XLA would abort after
# 40 s.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_collective_call_terminate_timeout_seconds=1200"
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# All processes of a test run share what they compile; the first of them removes it at its end.
CACHE = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
IS_FIRST = not CACHE.keys() <= os.environ.keys()
if IS_FIRST:
    os.environ |= CACHE | {"JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="compiled-")}
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

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


def pytest_unconfigure():
    """Removes what was compiled, in the process that chose the place."""
    if IS_FIRST:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def drop_programs():
    """What a file compiled leaves memory at its end: no other file runs it."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles in half the time; what is compiled runs a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
