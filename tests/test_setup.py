"""setup.py against the tree: packages, files that code reads, and the lock files beside it."""

import ast
import fnmatch
import functools
import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# The extra of setup.py that each lock file resolves, beside the base requirements.
LOCKS = {"cpu": "", "tpu": "tpu", "cuda": "cuda"}
LOCKED_PYTHON = "3.11"
PIN = re.compile(r"([\w.-]+)==([\w.+!]+)")


@functools.cache
def setup_arguments() -> dict:
    """What setup.py passes to `setup`; `packages` are the patterns that it looks for.

    Without setuptools, which a fresh environment of Python 3.12 lacks.
    """
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    text = text.replace("from setuptools import find_packages, setup\n", "")
    given = {}
    names = {"find_packages": lambda include: include, "setup": lambda **kw: given.update(kw)}
    exec(compile(text, "setup.py", "exec"), names)
    return given


def folders() -> list[Path]:
    """The top-level folders that are installed."""
    return [ROOT / name for name in setup_arguments()["packages"] if not name.endswith("*")]


def requirements(extra: str) -> list[Requirement]:
    """The requirements of an installation with an extra, on the platform of the lock files."""
    given = setup_arguments()
    lines = given["install_requires"] + (given["extras_require"][extra] if extra else [])
    environment = default_environment() | {
        "python_version": LOCKED_PYTHON,
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    found = map(Requirement, lines)
    return [r for r in found if r.marker is None or r.marker.evaluate(environment)]


def read_lock(name: str) -> dict[str, Version]:
    """The pinned versions of a lock file by package."""
    lines = (ROOT / f"requirements-{name}.lock").read_text(encoding="utf-8").splitlines()
    pins = [PIN.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert all(pins), "a line is neither a comment nor NAME==VERSION"
    return {canonicalize_name(pin[1]): Version(pin[2]) for pin in pins}


def test_every_folder_of_modules_is_installed():
    there = {path.parent for folder in folders() for path in folder.rglob("*.py")}
    assert len(there) > len(folders())
    for folder in there:
        name = ".".join(folder.relative_to(ROOT).parts)
        assert any(fnmatch.fnmatch(name, wanted) for wanted in setup_arguments()["packages"])
        assert (folder / "__init__.py").exists(), f"{name} is no package without __init__.py"


def test_every_file_that_is_no_module_is_installed():
    """A wheel has what package_data names: the report's template was once left out."""
    installed = {
        path
        for package, patterns in setup_arguments()["package_data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = [path for folder in folders() for path in folder.rglob("*") if path.is_file()]
    # Compiled code of Python and numba lies in __pycache__.
    there = {path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts}
    assert there and there == installed


def test_entry_point_is_there():
    (line,) = setup_arguments()["entry_points"]["console_scripts"]
    module, name = line.partition("=")[2].strip().split(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_satisfies_setup(name):
    pins = read_lock(name)
    for wanted in requirements("") + requirements(LOCKS[name]):
        pinned = pins.get(canonicalize_name(wanted.name))
        assert pinned is not None, f"requirements-{name}.lock lacks {wanted.name}"
        assert wanted.specifier.contains(pinned), f"{wanted} is pinned at {pinned}"


@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_names_and_versions_alone(name):
    """No address of an index and no path, which hold on one machine only."""
    text = (ROOT / f"requirements-{name}.lock").read_text(encoding="utf-8")
    assert "://" not in text and " @ " not in text and "/" not in text


def test_locks_differ_in_the_accelerator_alone():
    """One jax on every platform, so that results of two platforms compare."""
    pins = {name: read_lock(name) for name in LOCKS}
    for name, found in pins.items():
        assert {key: found.get(key) for key in pins["cpu"]} == pins["cpu"], name
        extra = found.keys() - pins["cpu"].keys()
        assert all(key.startswith(("jax-cuda12", "nvidia-", "libtpu")) for key in extra), name
