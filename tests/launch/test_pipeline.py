"""The pipeline on the real table of stages with other bodies: order, skipping, refusing."""

import contextlib
import copy
import dataclasses
import json

import pytest

from data.engine import Runner
from data.errors import BadInput
from launch import settings
from launch.console import Progress
from launch.pipeline import run_stages
from launch.stages.stage import STAGES, TRAINED
from launch.store import rundir
from launch.store.rundir import RunDir
from tests.tiny import whole_config

ALL = tuple(STAGES)


class Pipeline:
    """A run whose stages only note that they were called; those trained leave a checkpoint."""

    def __init__(self, path, store=None):
        self.store = store
        self.corpus = path / "text"
        self.corpus.mkdir()
        (self.corpus / "a.txt").write_text("one document")
        self.run = RunDir(path / "run")
        self.called = []
        self.broken = None
        self.results = {}  # {stage: what else its result hangs on}
        self.config = whole_config()
        self.config["model"]["vocab_size"] = 0
        for source in self.config["data"]["sources"].values():
            source["path"] = str(self.corpus)

    def __call__(self, changes=None, *, only=None, fresh=False):
        """Runs the stages; returns the names of those whose bodies were called."""
        config = copy.deepcopy(self.config)
        for path, value in (changes or {}).items():
            *parents, key = path.split(".")
            section = config
            for parent in parents:
                section = section[parent]
            section[key] = value
        self.called = []
        self.outcome = run_stages(
            *(
                settings.parse(config),
                self.run,
                Progress(),
                "1 x cpu",
                Runner(workers=1),
                self.store,
            ),
            **dict(only=only, fresh=fresh, bodies=lambda _: self.run_body),
        )
        return self.called

    def run_body(self, job):
        self.job = job
        return self.body(job.stage, job.inputs)

    def body(self, name, inputs):
        """As a real one: its result is a function of its inputs."""
        self.called.append(name)
        result = rundir.digest([inputs, self.results.get(name)])
        if name in TRAINED:
            self.run.checkpoints(name).mkdir(parents=True, exist_ok=True)
            (self.run.stage(name) / "pairs.jsonl").write_text(result)
        if name == self.broken:
            raise RuntimeError("killed")
        return {"made": name, "params_sha256": result}

    def files(self):
        """{path: content} of everything in the run directory."""
        found = self.run.path.rglob("*")
        return {path: path.read_bytes() for path in found if path.is_file()}


@pytest.fixture
def pipeline(tmp_path):
    return Pipeline(tmp_path)


def test_stages_run_in_order_and_leave_what_they_cost(pipeline):
    assert tuple(pipeline()) == ALL
    assert all(row["status"] == "done" and row["made"] for row in pipeline.outcome.values())
    done = pipeline.run.read_done("sft")
    assert done["summary"]["made"] == "sft"
    assert done["secs"] >= 0 and done["cpu_secs"] >= 0


def test_a_second_run_has_nothing_to_do_and_writes_nothing(pipeline):
    pipeline()
    before = pipeline.files()
    assert pipeline() == []
    assert pipeline.files() == before
    rows = pipeline.outcome
    assert tuple(rows) == ALL and {row["status"] for row in rows.values()} == {"skipped"}
    assert rows["sft"]["made"] == "sft", "the summary is still returned"


AFTER_PRETRAIN = ALL[2:]
PAGE = ("report",)  # it shows the configuration


@pytest.mark.parametrize(
    ("key", "value", "again"),
    [
        ("data.heldout_fraction", 0.123, ALL),
        ("data.gates.min_chars", 7, ALL),
        ("tokenizer.vocab_size", 999, ALL[1:]),
        ("pretrain.seq_len", 123, ALL[1:]),
        ("seed", 123, AFTER_PRETRAIN),
        ("model.d_ff", 96, AFTER_PRETRAIN),
        ("model.dtype", "bfloat16", AFTER_PRETRAIN),
        ("pretrain.loop.num_steps", 777, AFTER_PRETRAIN),
        ("instruct.num_train", 11, AFTER_PRETRAIN[1:]),
        ("sft.optimizer.peak_lr", 0.5, AFTER_PRETRAIN[1:]),
        ("reward.pairs.noise_rate", 0.123, AFTER_PRETRAIN[2:]),
        ("dpo.beta", 0.123, ("dpo", "eval", "report")),
        ("ppo.rollout.kl_coef", 0.123, ("ppo", "eval", "report")),
        ("eval.num_comparisons", 7, ("eval", "report")),
        ("eval.num_heldout", 7, PAGE),
        ("stages", ALL[:-1], ()),
        ("cost.machine_watts", 7.0, PAGE),
        ("name", "other", PAGE),
        ("mesh.data", 2, ()),
        ("layout.kernel", "xla", ()),
        ("layout.remat", "full", ()),
        ("layout.scan_layers", False, ()),
        ("layout.context", "ring", ()),
        ("layout.stage_microbatches", 2, ()),
        ("layout.stage_repeats", 2, ()),
        *(
            (f"{stage}.loop.{key}", 3, ())
            for stage in TRAINED
            for key in ("log_every", "save_every", "eval_every", "keep_checkpoints")
        ),
    ],
)
def test_a_changed_key_reruns_its_stage_and_those_after(tmp_path, key, value, again):
    """In a run without checkpoints all of them; with checkpoints none, and nothing is lost."""
    pipeline = Pipeline(tmp_path)
    pipeline()
    before = pipeline.files()
    kept = [name for name in TRAINED if name in again]
    if kept:
        with pytest.raises(BadInput) as refused:
            pipeline({key: value})
        assert str(pipeline.run.checkpoints(kept[0])) in str(refused.value)
        assert pipeline.called == [] and pipeline.files() == before, "before anything is written"
        for stage in TRAINED:
            assert (pipeline.run.stage(stage) / "done.json").exists()
        for name in kept:
            rundir.remove(pipeline.run.checkpoints(name))
    assert tuple(pipeline({key: value})) == tuple(again)
    assert pipeline({key: value}) == []


def test_a_changed_input_file_reruns_all(pipeline):
    pipeline()
    (pipeline.corpus / "a.txt").write_text("other words")
    with pytest.raises(BadInput, match="pretrain: depends on stage 'curate', .* with files = "):
        pipeline()
    assert pipeline.called == [], "nor is a tokenizer put in the place of the models' own"
    assert tuple(pipeline(fresh=True)) == ALL


def test_an_edit_beside_a_changed_file_does_not_hide_it(pipeline, tmp_path, monkeypatch):
    pipeline()
    (pipeline.corpus / "a.txt").write_text("other words")
    (tmp_path / "code.py").write_text("x = 2")
    code = (*STAGES["curate"].code, str(tmp_path / "code.py"))
    edited = dataclasses.replace(STAGES["curate"], code=code)
    monkeypatch.setitem(STAGES, "curate", edited)
    with pytest.raises(BadInput, match="depends on stage 'curate', .* with files = "):
        pipeline()
    assert pipeline.called == []


def test_a_changed_file_of_conversations_reruns_from_fine_tuning(pipeline):
    own = pipeline.corpus.parent / "own.jsonl"
    own.write_text("{}")
    pipeline({"sft.data": {"mine": {"path": str(own)}}})
    own.write_text("{} ")
    with pytest.raises(
        BadInput, match="checkpoints/sft: written with other content of sft.data.mine"
    ):
        pipeline({"sft.data": {"mine": {"path": str(own)}}})
    assert pipeline.called == []


def test_stages_left_out_are_not_run(pipeline):
    stages = ("curate", "tokenizer", "pretrain", "eval")
    assert tuple(pipeline({"stages": stages})) == stages


def test_a_refusal_names_the_key_and_the_ways_out(pipeline):
    pipeline()
    beta = pipeline.config["dpo"]["beta"]
    with pytest.raises(BadInput) as refused:
        pipeline({"dpo.beta": 0.123})
    assert pipeline.called == []
    assert str(refused.value) == (
        f"{pipeline.run.checkpoints('dpo')}: written with dpo.beta = {beta}, this configuration "
        "has 0.123; use the same value, another --run directory, or `seedbed dpo --fresh` to start "
        "the stage over"
    )


def test_an_interrupted_stage_goes_on_with_what_it_has(pipeline):
    pipeline.broken = "reward"
    with pytest.raises(RuntimeError):
        pipeline()
    assert pipeline.run.read_done("reward") is None
    (pipeline.run.checkpoints("reward") / "mine").write_text("")
    pipeline.broken = None
    assert tuple(pipeline()) == AFTER_PRETRAIN[2:]
    assert (pipeline.run.checkpoints("reward") / "mine").exists()


def test_an_interrupted_rerun_does_not_count_as_finished(pipeline):
    """Neither for the new inputs nor for the old ones."""
    pipeline()
    pipeline.broken = "dpo"
    with pytest.raises(RuntimeError):
        pipeline({"dpo.beta": 0.123}, only="dpo", fresh=True)
    pipeline.broken = None
    with pytest.raises(BadInput, match="written with dpo.beta = 0.123"):
        pipeline()
    assert pipeline({"dpo.beta": 0.123}) == ["dpo", "eval", "report"]


def test_fresh_starts_over(pipeline):
    pipeline()
    (pipeline.run.checkpoints("sft") / "old").write_text("")
    assert tuple(pipeline(fresh=True)) == ALL
    assert not (pipeline.run.checkpoints("sft") / "old").exists()


def test_a_single_stage_runs_alone(pipeline):
    for name in ALL[:3]:
        assert pipeline(only=name) == [name]
        assert pipeline(only=name) == []
    assert tuple(pipeline.outcome) == ("pretrain",)


def test_a_single_stage_needs_those_it_stands_on(pipeline):
    pipeline(only="curate")
    before = pipeline.files()
    with pytest.raises(BadInput, match="stage 'tokenizer', which 'pretrain' reads from"):
        pipeline(only="pretrain")
    assert pipeline.files() == before


def test_a_single_stage_refuses_upstream_of_another_config(pipeline):
    pipeline()
    with pytest.raises(BadInput, match="stage 'pretrain', which 'sft' reads from, is not finished"):
        pipeline({"pretrain.loop.num_steps": 777}, only="sft")


def test_a_single_stage_must_be_in_the_pipeline(pipeline):
    with pytest.raises(BadInput, match="it must hold 'sft' for this verb"):
        pipeline({"stages": ("curate", "tokenizer", "pretrain")}, only="sft")
    assert not pipeline.run.path.exists()


def test_a_single_stage_refuses_a_checkpoint_of_another_config_and_touches_nothing(pipeline):
    pipeline()
    before = pipeline.files()
    with pytest.raises(BadInput) as refused:
        pipeline({"pretrain.loop.num_steps": 777}, only="pretrain")
    assert str(pipeline.run.checkpoints("pretrain")) in str(refused.value)
    num_steps = pipeline.config["pretrain"]["loop"]["num_steps"]
    wanted = f"pretrain.loop.num_steps = {num_steps}, this configuration has 777"
    assert wanted in str(refused.value)
    assert "--fresh" in str(refused.value)
    assert pipeline.files() == before
    assert pipeline() == [], "what was finished still is"


def test_fresh_overrides_the_refusal(pipeline):
    pipeline()
    changed = {"pretrain.loop.num_steps": 777}
    assert pipeline(changed, only="pretrain", fresh=True) == ["pretrain"]
    assert pipeline(changed, only="pretrain") == []


def test_a_refusal_names_a_key_that_is_new(pipeline):
    pipeline()
    path = pipeline.run.stage("dpo") / "started.json"
    started = json.loads(path.read_text())
    del started["inputs"]["dpo"]["beta"]
    rundir.write_json(path, started | {"hash": "older code"})
    (pipeline.run.stage("dpo") / "done.json").unlink()
    with pytest.raises(BadInput, match="dpo.beta = 'absent', this configuration has "):
        pipeline(only="dpo")


def test_a_single_stage_without_checkpoint_starts_over_on_other_inputs(pipeline):
    """Killed before its first checkpoint, its files of the old inputs must not be trusted."""
    pipeline()
    rundir.remove(pipeline.run.checkpoints("reward"))
    stale = pipeline.run.stage("reward") / "stale.jsonl"
    stale.write_text("of other inputs")
    assert pipeline({"reward.pairs.num_prompts": 99}, only="reward") == ["reward"]
    assert not stale.exists()


def test_a_missing_source_stops_before_anything_is_written(pipeline):
    with pytest.raises(BadInput, match="sources.docs.path"):
        pipeline({"data.sources.docs.path": str(pipeline.corpus / "nowhere")})
    assert not pipeline.run.path.exists()


def test_damaged_done_json_stops_the_run(pipeline):
    pipeline()
    (pipeline.run.stage("sft") / "done.json").write_text('{"inputs": ')
    with pytest.raises(BadInput, match="sft/done.json: not JSON"):
        pipeline()


@pytest.mark.parametrize("only", [None, "sft"])
def test_fresh_does_not_read_what_it_deletes(pipeline, only):
    pipeline()
    for file in ("done.json", "started.json"):
        (pipeline.run.stage("sft") / file).write_text("[" * 100_000)
    (pipeline.run.path / "metrics.jsonl").write_bytes(b'\xff\n{"loss": 1}\n')
    assert tuple(pipeline(only=only, fresh=True)) == (ALL if only is None else (only,))
    assert (pipeline.run.path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("only", [None, "sft"])
def test_fresh_takes_away_whatever_stands_in_the_way(pipeline, tmp_path, only):
    """A link's target is somebody's own; what lies after the stage may be damaged as well."""
    pipeline()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    run = pipeline.run
    rundir.remove(run.checkpoints("sft"))
    run.checkpoints("sft").symlink_to(elsewhere)
    (run.stage("sft") / "done.json").unlink()
    (run.stage("sft") / "done.json").mkdir()
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / "sft").write_text("")
    (run.stage("dpo") / "done.json").write_text("[")
    assert tuple(pipeline(only=only, fresh=True)) == (ALL if only is None else (only,))
    assert (elsewhere / "kept").exists() and not run.checkpoints("sft").is_symlink()
    assert run.read_done("sft") and not (run.path / "tensorboard" / "sft").exists()
    rundir.remove(run.stage("sft"))
    run.stage("sft").write_text("a file")
    assert pipeline(only="sft", fresh=True) == ["sft"]


def test_config_json_is_of_the_last_run_that_did_something(pipeline):
    pipeline()
    pipeline({"mesh.data": 2})
    assert pipeline.run.read_config()["mesh"]["data"] != 2
    pipeline({"name": "other", "eval.num_comparisons": 7})
    assert pipeline.run.read_config()["name"] == "other"


def test_a_damaged_stage_with_checkpoints_is_refused_until_it_is_started_over(pipeline):
    """Its cache may be other names of the files that are damaged."""
    pipeline()
    kept = pipeline.run.cache("reward") / "piece"
    for path in (kept, pipeline.run.checkpoints("reward") / "old"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    other = pipeline.run.cache("sft") / "piece"
    other.parent.mkdir()
    other.write_text("")
    pairs = pipeline.run.stage("reward") / "pairs.jsonl"
    before = pairs.read_text()
    pairs.write_text("")
    with pytest.raises(BadInput, match=f"configuration: {pairs} is damaged; run"):
        pipeline(only="ppo")
    with pytest.raises(BadInput, match=f"{pairs} is damaged; .*`seedbed reward --fresh`"):
        pipeline()
    assert pairs.read_text() == "" and kept.exists()
    assert pipeline(only="reward", fresh=True) == ["reward"]
    assert not kept.exists() and not (pipeline.run.checkpoints("reward") / "old").exists()
    assert other.exists() and pairs.read_text() == before
    assert set(pipeline()) <= {"report"}, "which shows how long it took"


def test_a_damaged_stage_without_checkpoints_is_done_again(pipeline, capsys):
    pipeline()
    page = pipeline.run.stage("eval") / "results.json"
    page.write_text("{}")
    pipeline.run.record_products("eval")
    page.write_text("")
    assert pipeline() == ["eval"]
    assert f"eval: {page} is damaged; made again" in capsys.readouterr().err


def test_a_stage_that_lacks_a_file_goes_on_from_what_is_left(pipeline):
    pipeline()
    (pipeline.run.stage("reward") / "pairs.jsonl").unlink()
    (pipeline.run.checkpoints("reward") / "mine").write_text("")
    assert pipeline()[0] == "reward"
    assert set(pipeline.called) <= {"reward", "report"}, "the page shows how long it took"
    assert (pipeline.run.checkpoints("reward") / "mine").exists()


def test_a_run_that_another_process_writes_is_refused_and_not_touched(pipeline):
    pipeline(only="curate")
    with RunDir(pipeline.run.path).lock(print):
        before = pipeline.files()
        with pytest.raises(BadInput, match="in use by process "):
            pipeline()
        assert pipeline(only="curate") == [], "nothing is written for it"
        assert pipeline.files() == before
    assert tuple(pipeline()) == ALL[1:]


def test_a_stage_finished_by_another_process_meanwhile_is_not_done_again(pipeline, monkeypatch):
    """What is finished is looked up once more when the lock is held."""
    lock, others = RunDir.lock, []  # the first to ask waits while others run everything

    @contextlib.contextmanager
    def late(run, note):
        if not others:
            others.append(run)
            pipeline()
            pipeline.called.clear()
        with lock(run, note):
            yield

    monkeypatch.setattr(RunDir, "lock", late)
    assert pipeline() == []
