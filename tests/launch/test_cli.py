"""Command line: every mistake is one line on standard error and exit code 2, at once."""

import contextlib
import functools
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import pipeline
from launch.cli import VERBS, run_command
from launch.stages.stage import STAGES
from launch.store import rundir
from launch.store.rundir import RunDir
from launch.verbs import bench, chat

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"
EIGHT = "--config.mesh.data=8"  # the devices of these tests
# Of the issue. Counted in processor time of the command, so that a busy machine does not count.
DOMAINS = ("docs", "code")
WITHOUT_CONFIG = ("chat", "report", "import", "export")


def seedbed(*arguments):
    """(exit code, standard output, standard error) of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def refusal(*arguments):
    """The one line that refuses a command, and nothing else anywhere."""
    code, out, err = seedbed(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("seedbed: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["grow"]])
def test_help_does_not_wait_for_jax(arguments, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "launch.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert "launch.flags" in imported and "jax" not in imported


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, ""),
        (["run", QUICKSTART, "--help"], 0, ""),
        (["grow"], 2, "verb 'grow' is unknown; allowed: run, curate"),
        (["run", QUICKSTART, "--config.mesh.data=3"], 2, "3 devices asked, 1 present"),
        (["run", QUICKSTART, "--config.data.sources.docs.path=nowhere"], 2, "nowhere: no file"),
        (["chat", "--run=nowhere"], 2, "nowhere: no such run; nowhere/config.json: no such file"),
    ],
)
def test_a_mistake_is_answered_by_one_line_and_writes_nothing(arguments, code, words, tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.cli", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (code == 2) and words in done.stderr
    assert ("usage: seedbed " in done.stdout) == (code == 0)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_help_names_every_verb_and_exit_code():
    code, out, err = seedbed("--help")
    assert (code, err) == (0, "")
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert all(f" {number} " in out for number in (0, 1, 2, 75, 130))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a verb is missing"),
        (["run"], "--config is missing; for example --config=configs/quickstart.py"),
        (["run", "--config"], "Missing value for flag --config"),
        (["run", "--config="], "no such file ''"),
        (["run", "--config=nowhere.py"], "--config=nowhere.py: no such file"),
        (["run", f"--config={ROOT}/configs"], "no such file"),
        (["run", "--config", "nowhere.py"], "no such file"),
        (["run", f"{QUICKSTART}:ARG"], "configs/quickstart.py takes no :ARG"),
        (["run", f"--config={ROOT}/configs/domains.py"], "configs/domains.py:DIRECTORY"),
        (["run", f"--config={ROOT}/configs/families.py"], "configs/families.py:NAME"),
        (["run", f"--config={ROOT}/configs/tune.py"], "configs/tune.py:RUN"),
        (["run", f"--config={ROOT}/configs/domains.py:nowhere", EIGHT], "nowhere/books"),
        (["run", QUICKSTART, "--speed=3"], "--speed: `seedbed run` has no such flag; allowed: --"),
        (["run", QUICKSTART, "again"], "argument 'again' is unknown"),
        (["run", QUICKSTART, "--json=perhaps"], "--json=perhaps"),
        (["run", QUICKSTART, "--stage=sft"], "--stage: `seedbed run` has no such flag; allowed:"),
        (["bench", QUICKSTART, "--run=x"], "--run: `seedbed bench` has no such flag"),
        (["chat", QUICKSTART, "--run=x"], "--config: `seedbed chat` has no such flag"),
        (["chat"], "--run is missing"),
        (["chat", "--run=nowhere", "--tokens=0"], "--tokens=0: must be a whole number, 1 or more"),
        (["chat", "--run=nowhere", "--tokens=-1"], "--tokens=-1: must be a whole number"),
        (["chat", "--run=nowhere", "--temperature=nan"], "--temperature=nan: must be a finite"),
        (["chat", "--run=nowhere", f"--seed={2**63}"], "0 or more and 2147483647 or less"),
        (["chat", "--run=nowhere", "--top-p=2"], "--top-p=2: must be a number, 0 or more and 1 or"),
        (["report"], "--run is missing"),
        (["run", QUICKSTART, "--run=gs://bucket/x"], "--run=gs://bucket/x: runs and models are"),
        (["curate", QUICKSTART, "--out=s3://bucket/x"], "--out=s3://bucket/x: runs and models"),
        (["chat", "--run=gs://bucket/x"], "it must be a directory of this machine"),
        (["export", "--run=x", "--hf=hf://me/model"], "--hf=hf://me/model: runs and models"),
        (["import", "--hf=nowhere", "--out=new"], "nowhere/config.json: no such file"),
        (["run", QUICKSTART, "--config.pretrain.lr=1"], "unknown key 'lr'"),
        (["run", QUICKSTART, "--config.model.num_kv_heads=99"], "a divisor of model.num_heads"),
        (["run", QUICKSTART, "--config.surprise=1"], "unknown key 'surprise'; allowed here: ["),
        (["run", "--config", f"{ROOT}/configs/quickstart.py", "-config.x=1"], "unknown key 'x'"),
        (["run", QUICKSTART, "--config.seed.x=1"], "--config.seed.x: unknown key 'x'"),
        (["run", QUICKSTART, "--config.model=3"], "--config.model: a section"),
        (["run", QUICKSTART, "--config.seed=abc"], "--config.seed=abc"),
        (["run", QUICKSTART, "--config.seed=1.5"], "--config.seed=1.5"),
        (["run", QUICKSTART, "--config.seed"], "Missing value for flag --config.seed"),
        (["run", QUICKSTART, "--config.model.qk_norm=maybe"], "model.qk_norm is 'maybe'"),
        (["run", QUICKSTART, "--config.stages=('tokenizer','curate')"], "once, in this order"),
        (
            ["run", QUICKSTART, EIGHT, "--config.instruct.num_train=0"],
            "stages has 'sft', instruct.num_train is 0 and sft.data is empty; set sft.data.NAME",
        ),
        (
            ["ppo", QUICKSTART, EIGHT, "--config.instruct.num_train=0"],
            "stages has 'ppo', instruct.num_train is 0 and rollout.data is empty; set rollout.",
        ),
        (["run", QUICKSTART, "--config.stages=("], "stages has '('; allowed"),
        (["run", QUICKSTART, "--config.data.sources.docs.gates=('nope',)"], "'nope' is not one of"),
        (["run", QUICKSTART, "--config.data.sources.docs.weight=-1.0"], "weight: -1.0 must be"),
        (
            ["run", QUICKSTART, "--config.pretrain.loop.num_steps=1"],
            "it must be below num_steps = 1",
        ),
        (["run", QUICKSTART, "--config.mesh.data=1"], "1 devices asked, 8 present"),
        (["bench", QUICKSTART, "--config.mesh.data=3"], "3 devices asked, 8 present"),
        (["run", QUICKSTART, "--config.mesh.tensor=8"], "mesh.tensor is 8, but dim"),
        (["sft", QUICKSTART, EIGHT, "--run=new"], "stage 'curate', which 'sft' reads from"),
        (["report", "--run=nowhere"], "nowhere/config.json: absent"),
        (["chat", "--run=nowhere", "--stage=sft"], "nowhere/config.json: no such file"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(*arguments)
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in WITHOUT_CONFIG])
def test_every_verb_reads_its_config(verb):
    assert "model.num_layers is 0" in refusal(verb, QUICKSTART, "--config.model.num_layers=0")


@pytest.fixture
def small(tmp_path):
    """A command on a corpus in tmp_path/text: `small(verb, override, ...)` gives its arguments."""

    def command(verb, *overrides):
        flags = [f"--run={tmp_path}/run", "--workers=1"]
        for domain in DOMAINS:
            key = f"--config.data.sources.{domain}"
            flags += [f"{key}.path={tmp_path}/text/{domain}", f"{key}.text_field=text"]
            flags += [f"{key}.gates=()"]
        return (verb, QUICKSTART, EIGHT, *flags, *overrides)

    for domain in DOMAINS:
        (tmp_path / "text" / domain).mkdir(parents=True)
    return command


def write_corpus(folder, *broken):
    """Two domains of 20 documents that are no copies of each other, and broken lines after two."""
    rng = random.Random(0)
    for domain in DOMAINS:
        # Letters, for digits count as equal.
        names = str.maketrans("0123456789", "abcdefghij")
        texts = [" ".join(f"word{rng.randrange(999)}" for _ in range(60)) for _ in range(20)]
        texts = [text.translate(names) for text in texts]
        lines = [json.dumps({"text": text}).encode() for text in texts]
        lines[2:2] = broken
        (folder / domain / "a.jsonl").write_bytes(b"\n".join(lines))


def last_line(*arguments):
    """The refusal of a command that has logged progress before."""
    code, out, err = seedbed(*arguments)
    assert (code, out) == (2, "") and "Traceback" not in err
    assert err.count("seedbed:") == 1
    return err.splitlines()[-1]


BROKEN_LINES = (b'{"text": "cut', b'{"txt": "none"}', b'{"text": 3}', b'{"text": "\xff\xfe"}')


def test_broken_records_among_good_ones_are_counted(small, tmp_path):
    write_corpus(tmp_path / "text", *BROKEN_LINES)
    code, out, err = seedbed(*small("curate", "--json"))
    assert code == 0
    assert json.loads(out)["stages"]["curate"]["broken_records"] == 2 * len(BROKEN_LINES)
    assert "skipped 8 broken records, the first" in err and "a.jsonl record 3" in err
    funnel = json.loads((tmp_path / "run" / "curate" / "funnel.json").read_text())
    assert {row["record"] for row in funnel["broken"]} == {3, 4, 5, 6}


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": "cut\n{"txt": 1}\n', b"\xff\xfe\n"])
def test_a_corpus_without_a_document_is_refused(small, tmp_path, content):
    write_corpus(tmp_path / "text")
    (tmp_path / "text" / "code" / "a.jsonl").write_bytes(content)
    line = last_line(*small("run"))
    assert "sources.code.path" in line and "not one document in 1 file(s)" in line
    assert not (tmp_path / "run" / "curate" / "done.json").exists()


def test_an_empty_folder_is_refused(small, tmp_path):
    assert "no file found; a file, folder or glob" in refusal(*small("run"))
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_larger_than_the_corpus_is_refused(small, tmp_path):
    write_corpus(tmp_path / "text")
    line = last_line(*small("run", "--config.tokenizer.vocab_size=50000"))
    assert "tokenizer.vocab_size=50000: the text sampled supports at most" in line
    assert not (tmp_path / "run" / "tokenizer" / "done.json").exists()
    assert not list((tmp_path / "run" / "tokenizer").rglob("*.model"))
    line = last_line(*small("run", "--config.tokenizer.vocab_size=50000"))
    assert "supports at most" in line, "and again"
    code, _, err = seedbed(*small("tokenizer", "--config.tokenizer.vocab_size=288", "--json"))
    assert code == 0, err


def test_missing_conversations_are_refused(small, tmp_path):
    write_corpus(tmp_path / "text")
    own = f"--config.sft.data.mine.path={tmp_path}/own.jsonl"
    line = refusal(*small("run", "--config.stages=('curate','tokenizer','pretrain','sft')", own))
    assert f"sft.data.mine.path: {tmp_path}/own.jsonl" in line


def test_a_finished_stage_answers_the_same_again(small, tmp_path):
    write_corpus(tmp_path / "text")
    first = json.loads(seedbed(*small("curate", "--json"))[1])
    again = json.loads(seedbed(*small("curate", "--json"))[1])
    assert again["stages"]["curate"].pop("status") == "skipped"
    assert first["stages"]["curate"].pop("status") == "done"
    for answer in (first, again):
        del answer["stages"]["curate"]["secs"]
    assert first == again


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_in_the_place_of_the_run_is_refused(small, tmp_path, place):
    write_corpus(tmp_path / "text")
    (tmp_path / "file").write_text("mine")
    line = refusal(*small("curate"), f"--run={tmp_path}/{place}")
    assert f"{tmp_path}/file" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_in_the_place_of_a_stage_is_refused(small, tmp_path):
    write_corpus(tmp_path / "text")
    RunDir(tmp_path / "run").write_config({}, "1 x cpu")
    (tmp_path / "run" / "curate").write_text("mine")
    assert f"{tmp_path}/run/curate" in last_line(*small("curate"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for the superuser")
def test_an_unwritable_place_is_refused(small, tmp_path):
    write_corpus(tmp_path / "text")
    (tmp_path / "run").mkdir(mode=0o500)
    assert "Permission denied" in refusal(*small("curate"))


def test_a_directory_of_other_files_is_refused(small, tmp_path):
    """--run=. in a checkout must not take eval/ for the stage's."""
    write_corpus(tmp_path / "text")
    line = refusal(*small("curate", "--fresh"), f"--run={tmp_path}")
    assert "holds 'text' and no config.json" in line
    assert (tmp_path / "text" / "code" / "a.jsonl").exists()


@pytest.mark.parametrize("content", ["", '{"inputs": "1f", "summ', "{}", "[]"])
def test_a_damaged_done_json_is_named(small, tmp_path, content):
    write_corpus(tmp_path / "text")
    seedbed(*small("curate"))
    path = tmp_path / "run" / "curate" / "done.json"
    path.write_text(content)
    assert f"{path}: " in last_line(*small("curate"))
    path.unlink()
    assert seedbed(*small("curate"))[0] == 0


@pytest.fixture
def finished(tmp_path):
    """A run that says sft is finished: configuration and tokenizer, no step of a checkpoint."""
    run = RunDir(tmp_path / "run")
    run.write_config(
        {
            "start": "",
            "tokenizer": {"path": "", "vocab_size": 0, "control": []},
            "model": {"vocab_size": 0},
            "sft": {"seq_len": 64},
            "eval": {"max_new_tokens": 8},
        },
        "1 x cpu",
    )
    for stage in ("tokenizer", "sft"):
        run.begin(stage, {}, {}, fresh=True)
    run.checkpoints("sft").mkdir(parents=True)
    rundir.write_json(
        run.stage("sft") / "done.json", {"inputs": "1f", "summary": {}, "products": []}
    )
    return run


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("reward", "--stage=reward: must be one of import, pretrain, sft, dpo, ppo"),
        ("dpo", "--stage=dpo: no model of it is in {path}; it has sft"),
    ],
)
def test_chat_with_a_stage_that_cannot_is_refused(finished, stage, words):
    line = refusal("chat", f"--run={finished.path}", f"--stage={stage}", "--prompt=x")
    assert words.format(path=finished.path) in line


@pytest.mark.parametrize("content", ['{"config": {"sf', "{}", ""])
@pytest.mark.parametrize("verb", ["chat", "report"])
def test_a_damaged_config_json_is_named(finished, verb, content):
    path = finished.path / "config.json"
    path.write_text(content)
    assert f"{path}: " in refusal(verb, f"--run={finished.path}")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (None, "holds no tokenizer that was trained here"),
        (b"other", "tokenizer.model: not a SentencePiece model"),
    ],
)
def test_chat_without_its_own_tokenizer_is_refused(finished, monkeypatch, model, words):
    class OfSize999:
        vocab_size = 999

    monkeypatch.setattr(chat.load, "load_model", lambda *_: (OfSize999, {}))
    path = finished.stage("tokenizer") / "tokenizer.model"
    if model:
        path.write_bytes(model)
    assert words in refusal("chat", f"--run={finished.path}", "--prompt=x")


@pytest.mark.parametrize("key", ["tokenizer", "tokenizer.path", "model", "start"])
def test_chat_names_what_config_json_has_of_another_type(finished, monkeypatch, key):
    described = json.loads((finished.path / "config.json").read_text())
    *parents, last = key.split(".")
    functools.reduce(dict.get, parents, described["config"])[last] = None
    (finished.path / "config.json").write_text(json.dumps(described))
    monkeypatch.setattr(chat.load, "load_model", lambda *_: (None, {}))
    line = refusal("chat", f"--run={finished.path}", "--prompt=x")
    assert f"config.json: config.{key}" in line and "is 'None'; it must be of type" in line


def test_a_bug_still_shows_its_trace(monkeypatch):
    """In run_command an exception that nobody expected passes; Python then exits with 1."""

    def broken(_):
        raise KeyError("a bug")

    monkeypatch.setattr(bench, "run_bench", broken)
    with pytest.raises(KeyError, match="a bug"):
        seedbed("bench", QUICKSTART, EIGHT)
    monkeypatch.setattr(bench, "run_bench", lambda _: Path("nowhere").read_text())
    with pytest.raises(FileNotFoundError):
        seedbed("bench", QUICKSTART, EIGHT)


def test_sigterm_between_checkpoints_exits_75_and_finishes_nothing(small, tmp_path, monkeypatch):
    write_corpus(tmp_path / "text")

    def body(job):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr(pipeline, "find_body", lambda _: body)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        code, out, err = seedbed(*small("curate", "--json"))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, "as it was"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 75 and "stopped by SIGTERM" in err
    assert json.loads(out)["preempted"]
    assert RunDir(tmp_path / "run").read_done("curate") is None


def test_a_report_says_which_stages_are_not_finished(small, tmp_path):
    write_corpus(tmp_path / "text")
    run = tmp_path / "run"
    stages_flag = "--config.stages=('curate','tokenizer','report')"
    assert seedbed(*small("curate", stages_flag))[0] == 0
    code, out, err = seedbed("report", f"--run={run}", "--json")
    assert code == 0 and json.loads(out)["unfinished"] == ["tokenizer"]
    assert err == f"seedbed: {run}: not finished, or out of date: tokenizer\n"
    assert "Not finished, or out of date: tokenizer" in (run / "report.html").read_text()
    (run / "curate" / "done.json").unlink()
    (run / "report.html").unlink()
    assert "no stage is finished yet, of curate, tokenizer" in refusal("report", f"--run={run}")
    assert not (run / "report.html").exists()


def test_verbs_are_the_stages_and_six_more():
    assert set(VERBS) == {*STAGES, "run", "chat", "bench", "import", "export", "config"}


@pytest.mark.parametrize("named", [False, True], ids=["in the user's cache", "where asked"])
def test_compiled_programs_are_kept_between_commands(tmp_path, named):
    """By a process of its own, since jax reads the variable as it starts."""
    place = tmp_path / "asked" if named else tmp_path / "cache" / "seedbed"
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COMPILATION_CACHE_DIR": str(place),
    }
    if not named:
        del environment["JAX_COMPILATION_CACHE_DIR"]
    compute = "def run_command(_):\n import jax\n return int(jax.jit(lambda x: x + 1)(2)) - 3\n"
    code = f"from launch import cli\n{compute}cli.run_command = run_command\ncli.main()"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert list(place.rglob("*-cache"))


@pytest.mark.parametrize("arguments", [("--help",), ("config", QUICKSTART)])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    command = [sys.executable, "-m", "launch.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
