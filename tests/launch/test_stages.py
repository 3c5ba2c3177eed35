"""Every stage and every config, shrunk, through the command line in this one process.

The mesh is 2 x 2 x 2 of the eight devices, so that each stage also runs split over all three axes.
"""

import contextlib
import gzip
import io
import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from configs import corpus, domains, quickstart
from data.quickstart.instruct import KINDS
from launch.cli import run_command
from launch.stages.stage import CHATS, MODELS, STAGES, TRAINED
from launch.store.rundir import RunDir

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "data.heldout_fraction": 0.2,
    "tokenizer.vocab_size": 600,
    "instruct.num_train": 96,
    "instruct.num_heldout_per_kind": 2,
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.head_dim": 4,
    "model.d_ff": 32,
    "pretrain.seq_len": 64,
    "sft.seq_len": 160,
    "reward.seq_len": 160,
    "reward.pairs.num_prompts": 24,
    "reward.pairs.samples_per_prompt": 2,
    "ppo.rollout.max_prompt_tokens": 128,
    "ppo.rollout.max_new_tokens": 8,
    "ppo.critic_optimizer.warmup_steps": 1,
    "eval.batch_size": 8,
    "eval.max_new_tokens": 8,
    "reward.pairs.max_new_tokens": 8,
    "eval.num_comparisons": 8,
    "eval.num_heldout": 1,
}
for _stage in TRAINED:
    SMALL |= {
        f"{_stage}.loop.num_steps": 2,
        f"{_stage}.loop.batch_size": 8,
        f"{_stage}.loop.log_every": 1,
        f"{_stage}.loop.save_every": 1,
        f"{_stage}.loop.eval_every": 2,
        f"{_stage}.optimizer.warmup_steps": 1,
    }
# Short prompts of every sort of check: fewer shapes to compile for.
SHORT_KINDS = ("add", "reverse_word", "signature", "benign", "unsafe", "unknown")
MIX = {f"instruct.mix.{kind}": float(kind in SHORT_KINDS) for kind in KINDS}


def write_texts(path, first):
    """Twenty documents of Python's reference manual, 1,500 characters at most, as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [text[:1500] for text in topics.values() if len(text) > 600][first : first + 20]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def sources(folder) -> dict:
    """Overrides that put two small domains in the quickstart's place."""
    chosen = {}
    for number, domain in enumerate(("docs", "code")):
        write_texts(folder / domain / "a.jsonl", 20 * number)
        chosen |= {
            f"data.sources.{domain}.path": folder / domain,
            f"data.sources.{domain}.text_field": "text",
            f"data.sources.{domain}.gates": "('length',)",
        }
    return chosen


def benchmarks(folder) -> dict:
    """Overrides that measure every model on two questions of a subject, one shot each."""
    rows = {"dev": "One and one?,1,2,3,4,B\n", "test": "One and two?,1,2,3,4,C\nTwo?,1,2,3,4,B\n"}
    for split, lines in rows.items():
        (folder / "mmlu").mkdir(parents=True, exist_ok=True)
        (folder / "mmlu" / f"sums_{split}.csv").write_text(lines)
    return {"eval.tasks": "('mmlu',)", "eval.data": folder, "eval.num_shots": 1}


def seedbed(*arguments, **overrides):
    """(exit code, standard output, standard error) of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([*map(str, arguments), *flags])
    return code, out.getvalue(), err.getvalue()


class Pulse:
    """One run of the whole pipeline and the commands upon it."""

    def __init__(self, folder):
        self.path = folder / "run"
        self.run = RunDir(self.path)
        self.overrides = SMALL | MIX | sources(folder / "text") | benchmarks(folder / "eval")
        self.overrides["stages"] = tuple(STAGES)

    def seedbed(self, verb, *arguments, **changes):
        """Exit code, standard output and standard error of a verb."""
        config = f"--config={ROOT}/configs/quickstart.py"
        workers = ["--workers=1"] * (verb in ("run", "curate", "tokenizer"))
        flags = [verb, config, f"--run={self.path}", "--json", *workers, *arguments]
        return seedbed(*flags, **(self.overrides | changes))

    def __call__(self, verb, *arguments, **changes):
        """A verb's JSON object; asserts that it ends well."""
        code, out, err = self.seedbed(verb, *arguments, **changes)
        assert code == 0, err
        return parse(out)

    def statuses(self, **changes):
        stages = self("run", **changes)["stages"]
        return {name: row["status"] for name, row in stages.items()}


def parse(out):
    """The one JSON object that standard output must be; not-a-number is no JSON."""
    assert out.count("\n") == 1 and out.endswith("\n"), out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(out, parse_constant=refuse)


@pytest.fixture(scope="module")
def pulse(tmp_path_factory):
    pulse = Pulse(tmp_path_factory.mktemp("pulse"))
    pulse.first = pulse("run")
    return pulse


def metrics(path):
    """{stage: [line, ...]} of metrics.jsonl."""
    lines = {}
    for line in (path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        lines.setdefault(record["stage"], []).append(record)
    return lines


def test_run_answers_with_every_stage(pulse):
    assert pulse.first["verb"] == "run" and pulse.first["run"] == str(pulse.path)
    stages = pulse.first["stages"]
    assert tuple(stages) == tuple(STAGES)
    assert {row["status"] for row in stages.values()} == {"done"}
    hashes = {stages[name]["params_sha256"] for name in TRAINED}
    assert len(hashes) == len(TRAINED), "each stage moves the parameters"


def test_every_training_stage_measures_what_it_never_trains_on(pulse):
    lines = metrics(pulse.path)
    wanted = {name: {"heldout/loss"} for name in TRAINED}
    wanted["ppo"] = wanted["grpo"] = {"heldout/reward"}
    wanted["reward"] = wanted["dpo"] = {"heldout/loss", "heldout/accuracy", "heldout/margin"}
    for stage, names in wanted.items():
        measured = [line for line in lines[stage] if names <= line.keys()]
        assert [line["step"] for line in measured] == [2], stage


def test_run_leaves_what_the_design_promises(pulse):
    for file in ("config.json", "metrics.jsonl", "report.html", "eval/results.json"):
        assert (pulse.path / file).stat().st_size > 100, file
    for stage in TRAINED:
        steps = [path.name for path in pulse.run.checkpoints(stage).iterdir()]
        assert steps == ["2"], f"{stage} keeps its newest checkpoint and no temporary directory"
        assert list((pulse.path / "tensorboard" / stage).glob("events.*")), stage
    for stage in tuple(STAGES):
        assert pulse.run.read_done(stage)["secs"] >= 0
    leftovers = [p for p in pulse.path.rglob("*") if p.suffix in (".part", ".partial", ".tmp")]
    assert not leftovers


def test_metrics_have_each_step_of_each_stage_once(pulse):
    lines = metrics(pulse.path)
    assert set(lines) == set(TRAINED)
    for stage, rows in lines.items():
        assert [row["step"] for row in rows if "loss" in row] == [1, 2], stage
    heldout = [row for row in lines["pretrain"] if "heldout_bits_per_byte/docs" in row]
    assert [row["step"] for row in heldout] == [2]


def test_results_measure_every_policy(pulse):
    results = json.loads((pulse.path / "eval" / "results.json").read_text())
    assert set(results["dialog"]) == set(MODELS)
    assert set(results["text"]) == {"docs", "code", "all"}
    assert set(results["preference"]) == {"dpo", "ppo", "grpo"}
    assert all(row["model"] > 0 and row["gzip"] > 0 for row in results["text"].values())
    assert set(results["tasks"]["mmlu"]) == set(MODELS)
    for row in results["tasks"]["mmlu"].values():
        assert {"metric": "acc", "version": 1, "shots": 1, "count": 2}.items() <= row.items()
    assert set(pulse.first["stages"]["eval"]["mmlu"]) == set(MODELS)
    assert 'id="tasks"' in (pulse.path / "report.html").read_text()


def test_another_file_of_a_benchmark_measures_again(pulse):
    path = pulse.path.parent / "eval" / "mmlu" / "sums_test.csv"
    before = path.read_text()
    path.write_text(before.replace("Two?", "Three?"))
    changed = [name for name, status in pulse.statuses().items() if status == "done"]
    path.write_text(before)
    assert changed == ["eval", "report"]
    assert pulse.statuses()["eval"] == "done"


def test_a_second_run_has_nothing_to_do(pulse):
    again = pulse("run")["stages"]
    assert {row["status"] for row in again.values()} == {"skipped"}
    assert again["dpo"]["params_sha256"] == pulse.first["stages"]["dpo"]["params_sha256"]


def test_another_mesh_is_no_reason_to_start_again(pulse):
    statuses = pulse.statuses(**{"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 4})
    assert set(statuses.values()) == {"skipped"}


def test_without_json_the_answer_is_a_table_and_progress_is_on_standard_error(pulse):
    arguments = ["run", f"--config={ROOT}/configs/quickstart.py", f"--run={pulse.path}"]
    code, out, err = seedbed(*arguments, **pulse.overrides)
    assert code == 0 and "params_sha256" in out
    assert err.count("skipped: configuration and inputs unchanged") == len(tuple(STAGES))


@pytest.mark.parametrize("stage", ["", *CHATS])
def test_chat_answers(pulse, stage):
    named = [f"--stage={stage}"] if stage else []
    arguments = ["chat", f"--run={pulse.path}", "--prompt=What is 2 + 3?", *named]
    code, out, err = seedbed(*arguments, "--json")
    assert code == 0 and not err
    answered = parse(out)
    assert answered["stage"] == (stage or MODELS[-1])
    assert answered["turns"][0]["prompt"] == "What is 2 + 3?"
    assert seedbed(*arguments) == (0, answered["turns"][0]["answer"] + "\n", "")


def test_chat_samples_as_asked(pulse):
    def answer(*flags):
        arguments = ["chat", f"--run={pulse.path}", "--prompt=What is 2 + 3?", *flags]
        code, out, _ = seedbed(*arguments)
        assert code == 0
        return out

    greedy, drawn = answer(), answer("--temperature=2", "--seed=1")
    assert answer("--temperature=2", "--seed=1") == drawn != answer("--temperature=2", "--seed=2")
    assert answer("--temperature=2", "--top-p=0") == greedy != drawn


def test_chat_reads_lines_as_turns_of_one_conversation(pulse, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nand you?\n"))
    code, out, _ = seedbed("chat", f"--run={pulse.path}", "--json")
    assert code == 0
    assert [turn["prompt"] for turn in parse(out)["turns"]] == ["hello", "and you?"]


def test_a_model_is_not_used_with_another_tokenizer_than_its_own(pulse, tmp_path):
    """Of as many ids, so that every shape fits."""
    path = pulse.path / "tokenizer" / "tokenizer.model"
    before = path.read_bytes()
    model = ModelProto.FromString(before)
    model.pieces[-1].score -= 1
    path.write_bytes(model.SerializeToString())
    try:
        for verb in (["chat", "--prompt=hello"], ["export", f"--hf={tmp_path}/out"]):
            code, _, err = seedbed(*verb, f"--run={pulse.path}")
            assert (
                code == 2
                and f"not the tokenizer that {MODELS[-1]} was trained with; restore" in err
            )
            assert err.splitlines()[-1].startswith("seedbed: ")
    finally:
        path.write_bytes(before)
    assert not (tmp_path / "out").exists()


def test_chat_says_how_long_an_answer_may_be(pulse):
    code, _, err = seedbed("chat", f"--run={pulse.path}", "--prompt=hello", "--tokens=100000")
    assert code == 2 and err == (
        "seedbed: --tokens=100000: must be below sft.seq_len = 160, which prompt and answer share\n"
    )


def test_report_is_made_again(pulse):
    page = pulse.path / "report.html"
    before = page.read_bytes()
    page.unlink()
    code, out, _ = seedbed("report", f"--run={pulse.path}", "--json")
    assert code == 0 and parse(out)["page"] == str(page)
    assert len(page.read_bytes()) == len(before)


def test_eval_alone_is_skipped_when_finished(pulse):
    assert pulse("eval")["stages"]["eval"]["status"] == "skipped"


def test_a_changed_dpo_key_is_refused_until_dpo_starts_over(pulse):
    """Last of the tests on this run but one: it is another run afterwards."""
    before = {name: pulse.run.read_done(name) for name in tuple(STAGES)}
    changed = {"dpo.beta": 0.5}
    code, _, err = pulse.seedbed("run", **changed)
    assert code == 2 and "checkpoints/dpo: written with dpo.beta = " in err
    assert {name: pulse.run.read_done(name) for name in tuple(STAGES)} == before
    assert list(pulse("dpo", "--fresh", **changed)["stages"]) == ["dpo"]
    statuses = pulse.statuses(**changed)
    assert [name for name, status in statuses.items() if status == "done"] == ["eval", "report"]
    for name in tuple(STAGES):
        rerun = name in ("dpo", "eval", "report")
        assert (pulse.run.read_done(name) == before[name]) == (not rerun), name
    assert set(pulse.statuses(**changed).values()) == {"skipped"}
    lines = metrics(pulse.path)["dpo"]
    trained = [line["step"] for line in lines if "loss" in line]
    assert trained == [1, 2], "the first try's lines are gone"


@pytest.mark.slow
def test_an_imported_model_is_tuned_and_taken_out_again(pulse, tmp_path):
    """A model of our own as if it were others': out, in, trained on, taught to chat, and out."""
    taken, run, tuned, out = (tmp_path / name for name in ("taken", "run", "tuned", "out"))
    for arguments in (
        ["export", f"--run={pulse.path}", "--stage=pretrain", f"--hf={taken}"],
        ["import", f"--hf={taken}", f"--out={run}"],
    ):
        code, _, err = seedbed(*arguments)
        assert code == 0, err
    marks = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    stages = ("curate", "tokenizer", "pretrain", "sft", "eval")
    sizes = {key: value for key, value in pulse.overrides.items() if not key.startswith("model")}
    sizes |= {"stages": stages, "tokenizer.control": marks, "tokenizer.vocab_size": 600}
    config = f"--config={ROOT}/configs/tune.py:{run}"
    code, out_json, err = seedbed("run", config, f"--run={tuned}", "--json", **sizes)
    assert code == 0, err
    first = metrics(tuned)["pretrain"][0]
    # It starts where the other has ended, not at the fresh model's loss.
    assert first["loss"] < metrics(pulse.path)["pretrain"][0]["loss"]
    for arguments in (
        ["chat", f"--run={tuned}", "--prompt=What is 2 + 3?"],
        ["export", f"--run={tuned}", f"--hf={out}"],
    ):
        code, _, err = seedbed(*arguments)
        assert code == 0, err
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (out / name).read_bytes() == (taken / name).read_bytes()
    padded = {**sizes, "stages": stages[:3], "model.vocab_multiple": 512}
    code, _, err = seedbed("run", config, f"--run={tmp_path}/padded", **padded)
    assert code == 0, err
    again = metrics(tmp_path / "padded")["pretrain"][0]
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-5)
    wrong = {**sizes, "model.d_ff": 40}
    code, _, err = seedbed("run", config, f"--run={tmp_path}/wrong", **wrong)
    assert code == 2 and "model.d_ff is 40; it must be 32, as in start=" in err


CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
SPEED = {"bench_cpu"}  # what they are for is `seedbed bench`
TRIED = {"families", "tune"}  # test_launch_families.py, and above


def own_layout() -> dict:
    """SMALL with the mesh and the batch sizes left to the config."""
    return {
        key: value
        for key, value in SMALL.items()
        if not key.startswith("mesh.") and not key.endswith(".loop.batch_size")
    }


@pytest.mark.slow
def test_quickstart_runs_on_eight_devices_as_it_stands(tmp_path):
    """Every stage, on the mesh and with the batch sizes that the file names."""
    config = f"--config={ROOT}/configs/quickstart.py"
    overrides = own_layout() | MIX | sources(tmp_path / "text") | {"eval.batch_size": 64}
    code, out, err = seedbed("run", config, f"--run={tmp_path}/run", "--json", **overrides)
    assert code == 0, err
    assert tuple(parse(out)["stages"]) == quickstart.get_config().stages
    assert RunDir(tmp_path / "run").read_config()["mesh"]["data"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in SPEED | TRIED])
def test_config_trains_two_steps(name, tmp_path):
    """On the eight devices, whatever the config's mesh and batch sizes make of them."""
    text, argument = tmp_path / "text", ""
    chosen = {"stages": "('curate', 'tokenizer', 'pretrain')"}
    if name in LAID_OUT:
        lay_out(text, LAID_OUT[name].get_config(str(text)).data.sources)
        argument = f":{text}"
        names = LAID_OUT[name].get_config("text").data.sources
        chosen |= {f"data.sources.{domain}.gates": "('length',)" for domain in names}
        chosen |= {"eval.sets": ""}
    elif name == "web":
        write_texts(text / "a.jsonl", 0)
        chosen |= {"data.sources": text}
    else:
        chosen |= sources(text)
    config = f"--config={ROOT}/configs/{name}.py{argument}"
    code, out, err = seedbed(
        "run", config, f"--run={tmp_path}/run", "--json", **(own_layout() | chosen)
    )
    assert code == 0, err
    summary = parse(out)["stages"]
    realised = [row["realised"] for row in summary["pretrain"]["mixture"] if not row["stage"]]
    assert sum(realised) == pytest.approx(1)
    assert [row["step"] for row in metrics(tmp_path / "run")["pretrain"] if "loss" in row] == [1, 2]


LAID_OUT = {"domains": domains, "corpus": corpus}


def lay_out(text, sources):
    """A file for each place that the sources of a configuration look at."""
    for number, source in enumerate(sources.values()):
        write_texts(text / "plain.jsonl", 4 * number)
        lines = (text / "plain.jsonl").read_text()
        (text / "plain.jsonl").unlink()
        if source.path.endswith(".txt.gz"):
            documents = [json.loads(line)["text"] for line in lines.splitlines()]
            lines = "\n<|endoftext|>\n".join(documents)
        for pattern in source.path.split(","):
            path = Path(pattern.replace("*", f"a{number}"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(lines.encode()))
