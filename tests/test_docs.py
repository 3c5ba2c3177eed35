"""Every command and every Python block of README and docs/ runs; every path and link is there.

Commands are read from fenced bash blocks and from code spans; one with a placeholder in capitals is
a synopsis. Each is parsed as the command line would, its configuration too, as it stands. Those
that train nothing are then run, on one small run; those that train are run with the sizes of SMALL,
and are marked slow. Not run here:

- pip: installing needs a package index; files and extras are looked up instead,
- make: the recipes are what CI runs; the targets are looked up with `make -n`.
"""

import ast
import contextlib
import functools
import gzip
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from launch import flags, settings
from launch.report.metrics import METRICS
from launch.stages.stage import STAGES, TRAINED
from tests.launch.test_convert import make_params
from tests.launch.test_convert_gguf import TINY, write_gguf
from tests.launch.test_stages import MIX, SMALL, benchmarks, metrics, seedbed, write_texts
from tests.launch.test_start import write_own
from tests.test_setup import ROOT, setup_arguments

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("seedbed", "make", "pip", "python", ".", "cp")
PLACEHOLDER = re.compile(r"\b(VERB|FILE|DIR|NAME|RUN|STAGE|ID|KEY|ADDRESS|VALUE)\b|\.\.\.")
ASSIGNMENT = re.compile(r"\w+=\S+")
SAVED = re.compile(r"# (my/\w+\.py)\n")  # the first line of a block that is a file
# Code spans that are paths in the checkout, and those that are files of a run.
OURS = re.compile(
    r"(?:configs|model|data|train|eval|alignment|launch|tests|docs|benchmarks)/[\w./-]*"
    r"|[\w-]+\.(?:py|lock|toml|md)|Makefile|LICENSE"
)
OF_RUNS = ("eval/results.json",)
CHEAP = ("--help", "config", "chat", "report", "export", "import", "curate")
SMALL_STAGES = ("curate", "tokenizer", "pretrain", "report")


class Command(NamedTuple):
    """A command line of a page: its words, without what is set in the environment."""

    page: str
    words: tuple[str, ...]

    @property
    def overrides(self) -> set[str]:
        """Dotted keys that it gives."""
        found = (re.match(r"--config\.([^=]+)=", word) for word in self.words)
        return {match[1] for match in found if match}

    def value(self, flag: str) -> str:
        """What a flag is given, or ''."""
        start = f"--{flag}="
        return next((w.removeprefix(start) for w in self.words if w.startswith(start)), "")


def find_commands() -> Iterator[Command]:
    """The commands of all pages, each once for its page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = itertools.chain.from_iterable(
            body.replace("\\\n", " ").splitlines()
            for language, body in BLOCK.findall(text)
            if language == "bash"
        )
        spans = (span for span in SPAN.findall(BLOCK.sub("", text)) if is_command(span))
        found = (part for line in (*lines, *spans) for part in split_line(line))
        yield from dict.fromkeys(Command(page.name, words) for words in found)


def is_command(span: str) -> bool:
    """Whether a code span is a command with something to it, and no synopsis."""
    words = [word for word in span.split() if not ASSIGNMENT.fullmatch(word)]
    if len(words) < 2 or words[0] not in PROGRAMS[:3] or PLACEHOLDER.search(span):
        return False
    return words[0] != "seedbed" or "--" in span  # a verb alone is spoken of


def split_line(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of a shell, as words."""
    words = shlex.split(line, comments=True)
    for is_joint, part in itertools.groupby(words, lambda word: word == "&&"):
        if not is_joint:
            yield tuple(itertools.dropwhile(ASSIGNMENT.fullmatch, part))


COMMANDS = list(find_commands())
SEEDBED = [command for command in COMMANDS if command.words[0] == "seedbed"]
QUICK = [c for c in SEEDBED if c.words[1] in CHEAP and not c.value("config").startswith("my/")]
LONG = [command for command in SEEDBED if command not in QUICK]


# What is copied, and where to: made with the workshop.
COPIES = {c.words[-1]: c.words[-2] for c in COMMANDS if c.words[:2] == ("cp", "-r")}


def named(command: Command) -> str:
    """A test's name for a command."""
    return f"{command.page} {' '.join(command.words)}"[:90]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In a working directory, whose own modules can be imported."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def write_inputs(folder: Path) -> None:
    """What the pages call my/..., and configs/."""
    (folder / "configs").symlink_to(ROOT / "configs")
    my = folder / "my"
    for name, first in (("notes/a.jsonl", 0), ("good/a.jsonl", 20), ("bad/a.jsonl", 40)):
        write_texts(my / name, first)
    (my / "pages").mkdir()
    (my / "pages" / "a.gz").write_bytes(gzip.compress((my / "good" / "a.jsonl").read_bytes()))
    rows = (f"{number % 3},{'kind' if number % 3 > 1 else 'vile'} words" for number in range(90))
    (my / "tweets.csv").write_text("\n".join(["class,tweet", *rows]))
    (my / "hosts.txt").write_text("ads.example\n")
    (my / "out.txt").write_text("https://example.org/private\n")
    write_own(my)
    for name in ("chats", "prompts"):
        shutil.copy(my / "own.jsonl", my / f"{name}.jsonl")
    benchmarks(my / "benchmarks")
    (my / "benchmarks" / "gsm8k").mkdir()
    question = {"question": "One and one?", "answer": "It is 2.\n#### 2"}
    for split in ("train", "test"):
        path = my / "benchmarks" / "gsm8k" / f"{split}.jsonl"
        path.write_text(
            "".join(json.dumps(question | {"question": f"{n}?"}) + "\n" for n in "1234567")
        )
    write_gguf(my / "model.gguf", make_params(TINY, 3))
    for page in PAGES:
        for language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language == "python" and (saved := SAVED.match(body)):
                (folder / saved[1]).write_text(body)


def shrink(command: Command) -> list[str]:
    """Overrides that make a command's work small, but for the keys that it gives itself."""
    config = command.value("config").partition(":")[0]
    if not config or command.words[1] == "config":
        return []
    chosen = {key: value for key, value in (SMALL | MIX).items() if not key.startswith("mesh.")}
    chosen |= {"data.heldout_fraction": 0.2, "grpo.group_size": 2, "eval.num_shots": 1}
    chosen["rollout.num_minibatches"] = 1  # of 8 answers, on as many devices
    if config == "configs/tune.py":  # its model is the run's
        chosen = {key: value for key, value in chosen.items() if not key.startswith("model.")}
    if config == "configs/quickstart.py" and "data.sources" not in command.overrides:
        for domain in ("docs", "code"):
            chosen[f"data.sources.{domain}.path"] = "my/notes" if domain == "docs" else "my/good"
            chosen[f"data.sources.{domain}.gates"] = "('length',)"
    given = command.overrides
    return [f"--config.{key}={value}" for key, value in chosen.items() if key not in given]


def run(command: Command) -> str:
    """Runs a command, shrunk; what it makes may be there from another page, and is removed."""
    verb, made = command.words[1], ("out",) if command.words[1] == "import" else ("hf",)
    made = made if verb in ("import", "export") else ("run",) * (verb in ("run", "curate"))
    for place in filter(None, map(command.value, made)):
        if place not in COPIES:
            shutil.rmtree(place, ignore_errors=True)
    workers = ["--workers=1"] * (verb in ("run", "curate", "tokenizer"))
    code, out, err = seedbed(*command.words[1:], *shrink(command), *workers)
    assert code == 0, err[-2000:]
    return out


def make_workshop(folder: Path, stages: tuple[str, ...]) -> Path:
    """A working directory with inputs, a finished quickstart, and runs and models made of it."""
    write_inputs(folder)
    with inside(folder):
        words = ("run", "--config=configs/quickstart.py", f"--config.stages={stages}")
        run(Command("", ("seedbed", *words)))
        for line in (
            "seedbed export --run=runs/quickstart --hf=my/llama",
            "seedbed import --hf=my/llama --out=runs/llama",
        ):
            run(Command("", tuple(line.split())))
        for copy, source in COPIES.items():
            shutil.copytree(source, copy, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_workshop(tmp_path_factory.mktemp("small"), SMALL_STAGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    stages = tuple(name for name in STAGES if name != "grpo")
    return make_workshop(tmp_path_factory.mktemp("whole"), stages)


def test_pages_have_commands():
    assert len(SEEDBED) > 30 and {command.page for command in SEEDBED} >= {"README.md", "data.md"}
    assert {word for command in COMMANDS for word in command.words[:1]} == set(PROGRAMS)


@pytest.mark.parametrize("command", [c for c in SEEDBED if c.words[1] != "--help"], ids=named)
def test_command_is_understood(command, small):
    """As it stands: flags, keys, and what must hold between them."""
    with inside(small):
        parsed = flags.parse(command.words[1], list(command.words[2:]))
        if parsed.config is not None:
            config = parsed.config
            if command.words[1] == "bench":
                config.stages = ("curate", "tokenizer", "pretrain")
            chosen = settings.parse(config)
            if {*TRAINED} & set(chosen.stages):
                settings.fit_mesh(chosen)


@pytest.mark.parametrize("command", QUICK, ids=named)
def test_quick_command_runs(command, small, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))  # of chat
    with inside(small):
        assert run(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG, ids=named)
def test_long_command_runs(command, whole):
    with inside(whole):
        run(command)


def python_blocks() -> list[tuple[str, str]]:
    """(name of the page, text) of the blocks that are no files."""
    found = ((page.name, page.read_text(encoding="utf-8")) for page in PAGES)
    blocks = [
        (name, body)
        for name, text in found
        for kind, body in BLOCK.findall(text)
        if kind == "python"
    ]
    return [(name, textwrap.dedent(body)) for name, body in blocks if not SAVED.match(body)]


@pytest.mark.parametrize(("page", "body"), python_blocks())
def test_python_block_runs(page, body, small, capsys):
    with inside(small):
        exec(compile(body, page, "exec"), {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "pip"], ids=named)
def test_pip_command_names_what_is_there(command):
    given = setup_arguments()
    _, verb, *rest = command.words
    assert verb == "install"
    for flag, value in itertools.zip_longest(rest, rest[1:], fillvalue=""):
        if flag == "-r":
            assert (ROOT / value).is_file(), value
        elif flag == "-e":
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", value)
            assert extras, value
            assert set(filter(None, (extras[1] or "").split(","))) <= set(given["extras_require"])
        else:
            assert flag == "--no-deps" or flag in [rest[i + 1] for i in range(len(rest) - 1)]


def test_every_extra_is_in_the_page_on_installing():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert listed == set(setup_arguments()["extras_require"])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "make"], ids=named)
def test_make_target_is_there(command):
    done = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "python"], ids=named)
def test_python_command_is_a_module(command):
    _, dash_m, module, *_ = command.words
    assert dash_m == "-m" and (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        assert "://" in link or (page.parent / link).exists(), link
    spans = (part for span in SPAN.findall(BLOCK.sub("", text)) for part in span.split(", "))
    for path in filter(OURS.fullmatch, spans):
        assert path in OF_RUNS or (ROOT / path).exists(), path


@functools.cache
def strings_of_the_code() -> str:
    """All that strings of the code hold, pieces of f-strings by themselves."""
    found = []
    for package in ("launch", "data", "model", "train", "alignment", "eval"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            found += [
                n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is str
            ]
    return "\n".join(found)


def test_messages_in_troubleshooting_are_those_of_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| message has .*\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [cell for table in tables for cell in re.findall(r"^\|(.*?)\|", table, re.MULTILINE)]
    messages = [message for cell in cells for message in SPAN.findall(cell)]
    assert len(tables) == 3 and len(messages) > 15
    system = {os.strerror(number) for number in range(1, 40)}
    code = strings_of_the_code()
    assert [m for m in messages if m not in system and m not in code] == []


def described(name: str) -> bool:
    """Whether the reference has a metric: by its name, or with capitals for a part of it."""
    patterns = (re.sub(r"[A-Z]+", r"[\\w./]+", known) for known in METRICS)
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@pytest.mark.parametrize("made", ["small", pytest.param("whole", marks=pytest.mark.slow)])
def test_every_metric_is_described(made, request):
    lines = metrics(request.getfixturevalue(made) / "runs" / "quickstart")
    names = {name for rows in lines.values() for line in rows for name in line}
    assert [n for n in sorted(names - {"stage", "step", "time"}) if not described(n)] == []
    assert not described("unheard_of")
