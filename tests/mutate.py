"""Mutation testing: draws small random faults in a file and runs the nearest tests on each.

    python -m tests.mutate model/loss.py model/ring.py --seed=0 --count=15 --seconds=120 --near=3

Each fault (mutant) is written into a temporary copy of the tree, never into the checkout. The tests
are those of the file's package that import it, directly or not, and are not slow: first those named
after it, then those that reach it by fewest imports. A survivor is a missing test, or equivalent.
"""

import argparse
import ast
import collections
import copy
import difflib
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLL_SECS = 0.05
WAIT = 20  # wall time allowed for each second of processor time
SWAPS = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Eq: [ast.NotEq],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
# Text for people, types, and decorators, which say how something runs.
SKIPPED_NODES = (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list"}
# Calls whose first argument is a function: replacing or swapping it is not a realistic fault.
HIGHER = {"map", "scan", "partial", "cond", "vmap", "jit", "grad", "vjp", "shard_map"}
LOGS = {"logging", "logger", "log", "warnings", "print", "warn_once"}


def find_places(node: ast.AST) -> Iterator[tuple]:
    """(container, key, node): each part that may change, and the list or node that holds it."""
    for field, value in ast.iter_fields(node):
        if field in SKIPPED_FIELDS:
            continue
        items = enumerate(value) if isinstance(value, list) else [(field, value)]
        for key, child in items:
            if isinstance(child, ast.AST) and not isinstance(child, SKIPPED_NODES):
                if isinstance(child, ast.Expr) and is_text(child.value):
                    continue
                yield (value if isinstance(value, list) else node), key, child
                yield from find_places(child)


def is_text(node: ast.AST) -> bool:
    """A docstring, or a call that writes a log."""
    while isinstance(node, (ast.Call, ast.Attribute)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in LOGS)


def vary(node: ast.AST) -> list[ast.AST]:
    """The nodes that may replace a node, each one fault."""
    found = []

    def change(**fields):
        other = copy.copy(node)
        vars(other).update(fields)
        found.append(other)

    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        for op in SWAPS.get(type(node.op), ()):
            change(op=op())
    if isinstance(node, ast.BinOp):
        found += [node.left, node.right][: 2 if isinstance(node.op, (ast.Add, ast.Mult)) else 1]
    elif isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            change(values=node.values[:i] + node.values[i + 1 :])
    elif isinstance(node, ast.UnaryOp):
        found.append(node.operand)
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in SWAPS[type(op)]:
                change(ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        change(test=ast.UnaryOp(ast.Not(), node.test))
        change(test=ast.Constant(False))
        if not isinstance(node, ast.While):
            change(test=ast.Constant(True))
    elif isinstance(node, ast.comprehension):
        for i in range(len(node.ifs)):
            change(ifs=node.ifs[:i] + node.ifs[i + 1 :])
    elif isinstance(node, ast.Slice):
        for bound in ("lower", "upper"):
            if getattr(node, bound):
                change(**{bound: None})
    elif isinstance(node, ast.Call):
        for i in range(len(node.keywords)):
            change(keywords=node.keywords[:i] + node.keywords[i + 1 :])
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        if node.args and called not in HIGHER and not isinstance(node.args[0], ast.Starred):
            found.append(node.args[0])
            if len(node.args) > 1:
                change(args=[node.args[1], node.args[0], *node.args[2:]])
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        change(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        for value in (node.value + 1, node.value - 1, node.value * 2):
            change(value=value)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        found.append(ast.Pass())
    return found


def draw(path: str, source: str, seed: int, count: int) -> list[tuple[int, str]]:
    """(line, text of the file) of up to `count` different mutants; equal seeds draw equally."""
    tree, rng, mutants = ast.parse(source), random.Random(f"{seed} {path}"), {}
    plain, places = ast.unparse(tree), list(find_places(tree))
    rng.shuffle(places)
    for container, key, node in places:
        if len(mutants) == count:
            break
        if variants := vary(node):
            put(container, key, rng.choice(variants))
            text = ast.unparse(ast.fix_missing_locations(tree))
            put(container, key, node)
            if text != plain:
                mutants.setdefault(text, getattr(node, "lineno", 0))
    return [(line, text) for text, line in mutants.items()]


def put(container, key, node: ast.AST):
    """Replaces the node at a place from `find_places`."""
    if isinstance(container, list):
        container[key] = node
    else:
        setattr(container, key, node)


def read_imports(root: Path) -> dict[str, set[str]]:
    """Modules of the tree: those that each imports anywhere, names imported from them included."""
    graph = {}
    for path in (file for package in root.glob("[a-z]*/") for file in package.rglob("*.py")):
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[".".join(path.relative_to(root).with_suffix("").parts)] = wanted
    return graph


def choose_tests(graph: dict[str, set[str]], path: str, near: int) -> tuple[list[str], set[str]]:
    """The test files to run, nearest first, and all modules that they reach."""
    changed = path.removesuffix(".py").replace("/", ".")
    package, stem = changed.split(".")[0], changed.split(".")[-1]
    steps, reached = {}, {}
    for test in (name for name in graph if name.startswith(f"tests.{package}.test_")):
        depth, queue = {test: 0}, collections.deque([test])
        while queue:
            module = queue.popleft()
            for wanted in graph.get(module, set()) - set(depth):
                depth[wanted] = depth[module] + 1
                queue.append(wanted)
        if changed in depth:
            named = f"{test}_".startswith(f"tests.{package}.test_{stem}_")
            steps[test] = (not named, depth[changed], test)
            reached[test] = set(depth)
    chosen = sorted(steps, key=steps.get)[:near]
    return [f"{test.replace('.', '/')}.py" for test in chosen], set().union(
        *(reached[t] for t in chosen)
    )


def fork_tests(tree: Path, tests: list[str], secs: int) -> int:
    """Starts the tests in a fork of this process, which has imported jax; returns its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (secs, secs))  # SIGKILL ends it
        os.dup2(os.open(tree / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os.chdir(tree)
        sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
        sys.modules.pop("tests", None)
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not real"]
        code = int(pytest.main([*options, *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def run_all(trees: list[Path], path: str, texts: list[str], tests: list[str], secs: int):
    """Yields (number, result, seconds) of each text of the file as its tests end.

    The limit `secs` is processor time, so that the load of the machine does not decide the result.
    Tests that sleep are killed after WAIT times `secs` of wall time.
    """
    free, waiting, running = list(trees), list(enumerate(texts)), {}
    while waiting or running:
        while free and waiting:
            (number, text), tree = waiting.pop(0), free.pop()
            (tree / path).write_text(text, encoding="utf-8")
            pid = fork_tests(tree, tests, secs)
            running[pid] = (number, tree, time.monotonic())
        time.sleep(POLL_SECS)
        for pid, (number, tree, start) in list(running.items()):
            took = time.monotonic() - start
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and took < WAIT * secs:
                continue
            if not ended:
                os.killpg(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
            free.append(tree)
            del running[pid]
            timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            yield number, "timed out" if timed_out else "killed" if status else "survived", took


def try_file(args, trees: list[Path], path: str, graph) -> list[str]:
    """Runs a file's mutants; returns the row of the table and the survivors' diffs."""
    source = (ROOT / path).read_text(encoding="utf-8")
    tests, reached = choose_tests(graph, path, args.near)
    if not tests:
        raise SystemExit(f"no test of {path}'s package imports it")
    for module in sorted(reached):  # once for all mutants
        if module.split(".")[0] in ("jax", "flax", "optax", "orbax", "pytest", "scipy", "pyarrow"):
            try:
                importlib.import_module(module)
            except ImportError:  # a name in a module, or a package that is not installed
                continue
    print(f"{path}: {' '.join(tests)}", flush=True)
    for _, result, took in run_all(trees[:1], path, [source], tests, 10 * args.seconds):
        print(f"  unchanged: {result} in {took:.0f} s", flush=True)
        if result != "survived":
            log = (trees[0] / "tests.log").read_text(encoding="utf-8")
            raise SystemExit(f"the tests must pass before {path} is changed:\n{log[-3000:]}")
    mutants = draw(path, source, args.seed, args.count)
    numbers = [n for n in range(len(mutants)) if not args.only or n in args.only]
    texts, ends, diffs = [mutants[n][1] for n in numbers], collections.Counter(), []
    for i, result, took in run_all(trees, path, texts, tests, args.seconds):
        ends[result] += 1
        before = ast.unparse(ast.parse(source)).splitlines()
        lines = list(difflib.unified_diff(before, texts[i].splitlines(), n=0, lineterm=""))[3:]
        head = f"{path}:{mutants[numbers[i]][0]} mutant {numbers[i]}"
        print(f"  {head} {result} in {took:.0f} s", flush=True)
        if result != "killed":
            diffs.append("\n  ".join([f"{head} {result}", *lines]))
    for tree in trees:
        (tree / path).write_text(source, encoding="utf-8")
    counts = (len(texts), ends["killed"], ends["survived"], ends["timed out"])
    return [f"{path:24}" + "".join(f"{count:>10}" for count in counts), *diffs]


def main():
    """Parses the command line and prints the table, then survivors with line and diff."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="PACKAGE/FILE.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=15, help="mutants a file")
    parser.add_argument("--seconds", type=int, default=120, help="processor time a mutant may take")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--near", type=int, default=None, help="test files to run; all by default")
    numbers = {"type": lambda text: [int(n) for n in text.split(",")], "default": []}
    parser.add_argument("--only", **numbers, help="numbers of the mutants to run, as 3,7")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    sys.dont_write_bytecode = True  # a cached mutant may be taken for the next one
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    with tempfile.TemporaryDirectory() as folder:
        # Programs that a mutant leaves alone are compiled once.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        trees = [Path(folder) / f"tree{job}" for job in range(args.jobs)]
        for tree in trees:
            for name in filter(None, names):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_file():
                    shutil.copy2(ROOT / name, tree / name)
        graph = read_imports(ROOT)
        reports = [try_file(args, trees, path, graph) for path in args.files]
    titles = ("drawn", "killed", "survived", "timed out")
    print(f"{'file':24}" + "".join(f"{title:>10}" for title in titles))
    print("\n".join(row for row, *_ in reports))
    print("\n".join(diff for _, *diffs in reports for diff in diffs))


if __name__ == "__main__":
    main()
