"""The rules of this codebase, checked on the source itself.

Every rule is a function from {path: text} to complaints, so that each is also tried on a snippet
that breaks it: a rule that finds nothing in its snippet is itself broken.
"""

import ast
import functools
import graphlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALL = {"configs", "model", "data", "train", "eval", "alignment", "serve", "launch"}
# Package: what it may import beside itself.
IMPORTS = {
    "configs": set(),
    "model": set(),
    "data": set(),
    "train": {"model", "data"},
    "eval": {"model", "data"},
    "alignment": {"train", "eval", "model", "data"},
    "serve": {"model", "data", "eval"},
    "launch": ALL,
    "benchmarks": ALL,
    "tests": ALL,
}
FORBIDDEN = {"data": {"jax", "jaxlib", "flax", "optax", "orbax"}, "configs": {"jax", "flax"}}
ONE_IMPORTER = {"ray": "data/engine.py"}
SHAPELESS = {"util", "utils", "common", "core", "helper", "helpers", "misc"}
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
# What may exceed a budget, and the argument for it: {"a/file.py" or "a/file.py:name": why}.
ARGUED_LENGTHS: dict[str, str] = {}
# Public functions that only users of the packages call: {"package.module.name": who they are}.
LIBRARY_FUNCTIONS: dict[str, str] = {
    "model.cache.insert": "programs that keep a batch going, in which a prompt takes an ended row",
    "model.interop.huggingface.load": "docs/models.md: loads a checkpoint onto any mesh",
    "launch.load.load_run": "README: a run's model and tokenizer from Python",
    "model.interop.huggingface.save": "its counterpart; the verb export streams from disk instead",
}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".jinja", ".txt", ".yaml", ".yml", ".json", ".sh", ""}
# Bracketed letters keep these patterns from finding themselves.
UNWANTED = {
    r"\b(TOD[O]|FIXM[E]|XX[X])\b": "an unfinished mark; finish it or open an issue",
    r"\bno[q]a\b": "a silenced lint rule; mend the line or argue the rule in pyproject.toml",
    r"(?<![\w.])/(roo[t]|wor[k]|tm[p]|hom[e])/": "a path of one machine",
    r"(?i)\b(agen[t]s?|helpe[r]) session|\bsub-?agen[t]|\bclaud[e]\b": "how it was written",
}

Files = dict[str, str]


@pytest.fixture(scope="module")
def files() -> Files:
    """Every text file of the checkout's root and packages."""
    tops = [p for p in ROOT.iterdir() if p.name in IMPORTS or (p / "__init__.py").is_file()]
    paths = [ROOT / ".ci" / "run", *ROOT.iterdir(), *(p for top in tops for p in top.rglob("*"))]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(paths)
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path.name != ".git"
    }


def _modules(files: Files, *, tests: bool = True) -> Iterator[tuple[str, str, ast.Module]]:
    """(path, package, tree) of every Python file in a package."""
    for path, text in files.items():
        package, _, rest = path.partition("/")
        if rest and path.endswith(".py") and (tests or package != "tests"):
            yield path, package, _parse(text, path)


@functools.cache
def _parse(text: str, path: str) -> ast.Module:
    """Once for all rules."""
    return ast.parse(text, path)


@functools.cache
def _walk(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Every node of a tree, found once for all rules."""
    return tuple(ast.walk(tree))


def _imports(tree: ast.Module, path: str) -> Iterator[tuple[int, str, str]]:
    """(line, module, name imported from it or '') of every import, late ones and calls too."""
    package = path.rpartition("/")[0].replace("/", ".")
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = f"{package}.{node.module}" if node.module else package
            module = inside if node.level else node.module
            yield from ((node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value), ""


def find_wrong_imports(files: Files) -> list[str]:
    return [
        f"{path}:{line} imports {module}; {package} may import only "
        f"{sorted(IMPORTS[package]) or 'itself'}"
        for path, package, tree in _modules(files)
        for line, module, _ in _imports(tree, path)
        if (top := module.split(".")[0]) in IMPORTS and top != package and package in IMPORTS
        if top not in IMPORTS[package]
    ]


def find_strangers(files: Files) -> list[str]:
    found = []
    for path, package, tree in _modules(files, tests=False):
        for line, module, _ in _imports(tree, path):
            top = module.split(".")[0]
            if top in FORBIDDEN.get(package, ()):
                found.append(f"{path}:{line} imports {top}; {package} does without it")
            if ONE_IMPORTER.get(top, path) != path:
                found.append(f"{path}:{line} imports {top}; only {ONE_IMPORTER[top]} does")
    return found


def find_bare_eval(files: Files) -> list[str]:
    return [
        f"{path}:{line} hides the builtin eval; write 'from eval import {module[5:] or '...'}'"
        for path, _, tree in _modules(files)
        for line, module, name in _imports(tree, path)
        if module.split(".")[0] == "eval" and not name
    ]


def find_circles(files: Files) -> list[str]:
    """A circle of modules; late and typing-only imports count."""
    known = {path[:-3].replace("/", "."): path for path, _, _ in _modules(files)}
    graph = {}
    for path, _, tree in _modules(files):
        wanted = set()
        for _, module, name in _imports(tree, path):
            wanted |= {m for m in (f"{module}.{name}" if name else module, module) if m in known}
        graph[path[:-3].replace("/", ".")] = wanted
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"modules import each other in a circle: {' <- '.join(error.args[1])}"]
    return []


def find_shapeless_names(files: Files) -> list[str]:
    return [
        f"{path}: a name that says nothing; name the thing that it holds"
        for path, _, _ in _modules(files)
        if SHAPELESS & set(re.split(r"[/_.]", path.removesuffix(".py")))
    ]


def find_unknown_rooms(files: Files) -> list[str]:
    inits = [path for path in files if path.count("/") == 1 and path.endswith("/__init__.py")]
    packages = [path.split("/")[0] for path in inits]
    return [
        f"{package}/ is not in the table of packages"
        for package in packages
        if package not in IMPORTS
    ]


def find_long_parts(files: Files) -> list[str]:
    lengths = []
    for path, _, tree in _modules(files):
        lengths.append((path, len(files[path].splitlines()), MAX_FILE_LINES))
        for node in _walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                lengths.append((f"{path}:{node.name}", lines, MAX_FUNCTION_LINES))
    return [
        f"{part} has {lines} lines; the budget is {budget}"
        for part, lines, budget in lengths
        if lines > budget and part not in ARGUED_LENGTHS
    ]


def find_full_inits(files: Files) -> list[str]:
    return [
        f"{path} must hold a docstring and nothing else"
        for path, _, tree in _modules(files)
        if path.endswith("/__init__.py") and (len(tree.body) != 1 or not ast.get_docstring(tree))
    ]


def find_bare_excepts(files: Files) -> list[str]:
    """Handlers that catch everything unnamed, or that catch widely and do nothing."""
    found = []
    for path, _, tree in _modules(files):
        for node in _walk(tree):
            if isinstance(node, ast.ExceptHandler):
                wide = isinstance(node.type, ast.Name) and node.type.id.endswith("Exception")
                silent = all(isinstance(step, (ast.Pass, ast.Continue)) for step in node.body)
                if node.type is None or (wide and silent):
                    found.append(
                        f"{path}:{node.lineno} swallows every error; name what is expected"
                    )
    return found


def find_unwanted_text(files: Files) -> list[str]:
    return [
        f"{path}:{number} holds {found.group()!r}: {why}"
        for path, text in files.items()
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, why in UNWANTED.items()
        if (found := re.search(pattern, line))
    ]


def find_false_tree(files: Files) -> list[str]:
    """README's fenced tree against the folders that hold modules: `folder/  clause` a line."""
    listed = {}
    for block in re.findall(
        r"^```\w*\n(.*?)^```", files.get("README.md", ""), re.DOTALL | re.MULTILINE
    ):
        if re.search(r"^launch/", block, re.MULTILINE):
            listed |= dict(re.findall(r"^([\w/]+/)[ \t]*(.*)$", block, re.MULTILINE))
    if not listed:
        return ["README.md has no fenced tree with a line that starts with launch/"]
    folders = {
        path.rpartition("/")[0] + "/" for path, package, _ in _modules(files) if package != "tests"
    }
    folders |= {"tests/"} & set(listed)
    found = [f"README.md's tree lacks {folder}" for folder in sorted(folders - set(listed))]
    found += [f"README.md's tree lists {f}, which is not there" for f in listed if f not in folders]
    return found + [
        f"README.md's tree says nothing of {f}" for f, clause in listed.items() if not clause
    ]


def find_undescribed(files: Files) -> list[str]:
    """Modules without a first line that says what they hold."""
    return [
        f"{path} has no docstring; its first line says what it holds"
        for path, _, tree in _modules(files)
        if not path.startswith("tests/") and not ast.get_docstring(tree)
    ]


def find_unread_keys(files: Files) -> list[str]:
    """Fields of config classes that no code reads; checks in __post_init__ are not reading."""
    fields, read = [], set()
    for path, _, tree in _modules(files, tests=False):
        checks = set()
        for node in _walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                for item in node.body:
                    if isinstance(item, ast.AnnAssign):
                        fields.append((f"{path}:{item.lineno}", node.name, item.target.id))
                    if isinstance(item, ast.FunctionDef) and item.name == "__post_init__":
                        checks |= {id(part) for part in ast.walk(item)}
        read |= {
            node.attr
            for node in _walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            if id(node) not in checks
        }
    return [
        f"{place} {name}.{field} is read by no code; delete the key or use it"
        for place, name, field in fields
        if field not in read
    ]


def find_uncalled(files: Files) -> list[str]:
    """Public functions of modules that nothing outside the tests refers to."""
    public, used = {}, set(re.findall(r"[\w.]+:\w+", files.get("setup.py", "")))
    # data/sources.py calls readers that its rows name.
    used |= set(re.findall(r'"(data[\w.]+:\w+)"', files.get("data/sources.py", "")))
    # The pipeline calls the body of each row.
    rows = re.findall(r'Stage\(\s*"(\w+)"', files.get("launch/stages/stage.py", ""))
    used |= {f"launch.stages.{name}:run" for name in rows}
    # eval/task.py calls that of each benchmark.
    used |= {
        f"{path[:-3].replace('/', '.')}:load" for path in files if path.startswith("eval/tasks/")
    }
    for path, package, tree in _modules(files, tests=False):
        module = path[:-3].replace("/", ".")
        own = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if package != "configs":
            public |= {f"{module}:{name}": path for name in own if not name.startswith("_")}
        aliases = {}  # name here: the module that it may stand for
        for node in _walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    used.add(f"{node.module}:{alias.name}")
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        within = {id(part): name for name, body in own.items() for part in ast.walk(body)}
        for node in _walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used.add(f"{aliases.get(node.value.id)}:{node.attr}")
            elif isinstance(node, ast.Name) and within.get(id(node)) != node.id:
                used.add(f"{module}:{node.id}")
    return [
        f"{path}: nothing calls {name}; delete it, make it private, or list it in LIBRARY_FUNCTIONS"
        for name, path in public.items()
        if name not in used and name.replace(":", ".") not in LIBRARY_FUNCTIONS
    ]


def find_unknown_flags(files: Files) -> list[str]:
    """Long flags in README that no string of launch/ names, so that the command line has none."""
    names = {
        node.value.lstrip("-").rstrip("=")
        for path, package, tree in _modules(files)
        if package == "launch"
        for node in _walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    flags = re.findall(r"(?<![\w-])--([a-z][\w-]*)", files.get("README.md", ""))
    return [
        f"README.md mentions --{flag}, which launch/ does not define"
        for flag in dict.fromkeys(flags)
        if flag not in names
    ]


# Each rule with a snippet that breaks it and a word of its complaint.
BROKEN: list[tuple[Callable[[Files], list[str]], Files, str]] = [
    (find_wrong_imports, {"eval/a.py": "def f():\n    from train import loop"}, "eval/a.py:2"),
    (
        find_wrong_imports,
        {"data/a.py": "import importlib as i\ni.import_module('model.b')"},
        "model",
    ),
    (find_wrong_imports, {"configs/a.py": "from data.errors import BadInput"}, "itself"),
    (find_strangers, {"data/a.py": "import jax.numpy as jnp"}, "without"),
    (find_strangers, {"data/dedup.py": "import ray"}, "data/engine.py"),
    (find_bare_eval, {"launch/a.py": "import eval"}, "launch/a.py:1"),
    (find_bare_eval, {"launch/a.py": "import eval.tasks"}, "from eval import tasks"),
    (find_circles, {"data/a.py": "from data import b", "data/b.py": "from . import a"}, "circle"),
    (find_circles, {"data/a.py": "from .b import f", "data/b.py": "import data.a"}, "circle"),
    (find_shapeless_names, {"data/text_utils.py": ""}, "data/text_utils.py"),
    (find_shapeless_names, {"core/a.py": ""}, "core/a.py"),
    (find_unknown_rooms, {"extra/__init__.py": ""}, "extra/"),
    (find_long_parts, {"data/a.py": "x = 1\n" * (MAX_FILE_LINES + 1)}, "data/a.py has"),
    (find_long_parts, {"data/a.py": "def f():\n" + "    f()\n" * MAX_FUNCTION_LINES}, "a.py:f has"),
    (find_full_inits, {"data/__init__.py": '"""Docs."""\nfrom data import chat'}, "docstring"),
    (find_full_inits, {"data/__init__.py": ""}, "docstring"),
    (find_bare_excepts, {"data/a.py": "try:\n    f()\nexcept:\n    g()"}, "data/a.py:3"),
    (find_bare_excepts, {"data/a.py": "try:\n    f()\nexcept Exception:\n    pass"}, "swallows"),
    (find_unwanted_text, {"README.md": "\n# TO" + "DO later"}, "README.md:2"),
    (find_unwanted_text, {"data/a.py": "import os  # no" + "qa"}, "lint"),
    (find_unwanted_text, {"Makefile": "cp x /tm" + "p/x"}, "one machine"),
    (find_unwanted_text, {"LOG.md": "an agen" + "t session made this"}, "written"),
    (find_false_tree, {"README.md": "no tree"}, "no fenced tree"),
    (find_false_tree, {"README.md": "```\nlaunch/ it runs\n```"}, "not there"),
    (find_false_tree, {"README.md": "```\nlaunch/\n```", "launch/a.py": ""}, "nothing of"),
    (
        find_false_tree,
        {"README.md": "```\nlaunch/ it\n```", "launch/a.py": "", "launch/b/c.py": ""},
        "lacks launch/b/",
    ),
    (find_undescribed, {"data/a.py": "x = 1"}, "data/a.py"),
    (
        find_unread_keys,
        {
            "data/a.py": "class AConfig:\n    rate: float\n    size: int\n"
            "    def __post_init__(self):\n        assert self.rate",
            "data/b.py": "def f(config):\n    config.rate = config.size",
        },
        "AConfig.rate",
    ),
    (find_uncalled, {"data/a.py": "def f():\n    return f()"}, "data.a:f"),
    (find_uncalled, {"data/a.py": "def f(): ...", "tests/test_a.py": "from data.a import f"}, "f"),
    (find_uncalled, {"data/a.py": "def f(): ...", "data/b.py": "import re\nre.f()"}, "data.a:f"),
    (find_unknown_flags, {"README.md": "`--confg=x`", "launch/cli.py": "'config'"}, "--confg"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in BROKEN))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps(rule, files):
    complaints = rule(files)
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(("rule", "broken", "word"), BROKEN)
def test_rule_finds_what_breaks_it(rule, broken, word):
    complaints = rule(broken)
    assert len(complaints) == 1 and word in complaints[0], complaints


def test_every_rule_is_in_the_table():
    assert {name for name in globals() if name.startswith("find_")} == {r.__name__ for r in RULES}


def test_rules_leave_a_sound_house_alone():
    sound = {
        "README.md": "Use `--config`.\n```\ntrain/  steps\nlaunch/  the command line\n```",
        "setup.py": "'seedbed = launch.cli:main'",
        "train/a.py": "'Step.'\nclass AConfig:\n    rate: float\n\ndef f(c):\n    return c.rate",
        "launch/cli.py": "'It runs.'\nfrom train import a\n\ndef main():\n    a.f('config')",
        "tests/test_a.py": "from train import a\nfrom launch import run",
    }
    assert {rule.__name__: rule(sound) for rule in RULES} == {rule.__name__: [] for rule in RULES}


@pytest.mark.parametrize("package", sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
def test_package_is_the_one_of_this_checkout(package):
    found = importlib.util.find_spec(package)
    assert Path(found.origin).parent == ROOT / package, f"{package} is imported from {found.origin}"


# What configs that need an argument are tried with.
ARGUMENTS = {
    **dict.fromkeys(("corpus", "domains"), ("text",)),
    "families": ("llama3.1-8b",),
    "tune": ("tests/imported",),
}


@pytest.mark.parametrize(
    "path",
    sorted({ROOT / "configs/quickstart.py", *ROOT.glob("configs/[!_]*.py")}),
    ids=lambda path: path.name,
)
def test_config_becomes_settings(path):
    from launch import settings

    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert settings.parse(module.get_config(*ARGUMENTS.get(path.stem, ()))).name
