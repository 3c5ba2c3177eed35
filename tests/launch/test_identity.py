"""What a stage's identity holds: the results that it depends on, and the code that computes it."""

import ast
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs import quickstart
from data.errors import BadInput
from launch import load, settings
from launch import pipeline as launch_pipeline
from launch.identity import describe_files, describe_inputs, find_faults
from launch.report.page import write_report
from launch.stages.stage import STAGES, TRAINED
from launch.store import rundir
from launch.store.rundir import ROOT
from tests.launch.test_pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def pipeline(tmp_path):
    return Pipeline(tmp_path)


def test_another_result_of_a_stage_reaches_what_shows_it(tmp_path, capsys):
    """Retrained by other code, whose result differs: evaluation and page follow."""
    pipeline = Pipeline(tmp_path)
    changes = {"stages": ("curate", "tokenizer", "pretrain", "eval", "report")}
    pipeline(changes)
    pipeline.results["pretrain"] = "of an optimizer that was edited"
    assert pipeline(changes, only="pretrain", fresh=True) == ["pretrain"]
    assert pipeline(changes) == ["eval", "report"]


def test_another_reward_model_reaches_evaluation(tmp_path):
    pipeline = Pipeline(tmp_path)
    changes = {"stages": ("curate", "tokenizer", "pretrain", "sft", "reward", "eval", "report")}
    pipeline(changes)
    changes["reward.pairs.noise_rate"] = 0.123
    assert pipeline(changes, only="reward", fresh=True) == ["reward"]
    assert pipeline(changes) == ["eval", "report"]


def test_the_same_result_again_changes_nothing_after_it(pipeline):
    pipeline()
    assert pipeline(only="pretrain", fresh=True) == ["pretrain"]
    assert set(pipeline()) <= {"report"}, "which shows how long it took"


def test_the_weight_of_a_source_is_an_input_of_what_mixes(pipeline):
    """Curation's result is the same with another, so that it would not reach them."""

    def describe(weight):
        pipeline.config["data"]["sources"]["docs"]["weight"] = weight
        return describe_inputs(settings.parse(pipeline.config))

    before, after = describe(1.0), describe(5.0)
    found = {name for name in before if before[name] != after[name]}
    assert found == {"tokenizer", "pretrain"}


def test_the_report_names_results_of_earlier_models(pipeline):
    pipeline()
    assert find_faults(pipeline.run) == []
    pipeline({"dpo.beta": 0.5}, only="dpo", fresh=True)
    assert find_faults(pipeline.run) == ["eval (of an earlier dpo)"]


def test_the_report_names_results_of_other_keys_and_models_without_evaluation(pipeline):
    changes = {"stages": ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "eval")}
    before = changes | {"stages": (*changes["stages"][:5], "eval")}
    pipeline(before)
    pipeline(changes, only="dpo")
    assert find_faults(pipeline.run) == ["eval (without dpo)"]
    pipeline(changes)
    assert find_faults(pipeline.run) == []
    pipeline(changes | {"dpo.beta": 0.5}, only="curate", fresh=True)
    assert find_faults(pipeline.run) == ["dpo (of another dpo.beta)"]
    pipeline(changes | {"data.heldout_fraction": 0.3}, only="curate", fresh=True)
    found = find_faults(pipeline.run)
    assert found[0] == "tokenizer (of an earlier curate)" and len(found) == 6, "all after it"


def test_config_json_has_the_keys_of_what_is_there(pipeline):
    """A stage made again without a change in its result leaves all others finished."""
    changes = {"stages": ("curate", "tokenizer", "pretrain")}
    pipeline(changes)
    other = changes | {"pretrain.z_loss": 0.9, "mixture.domain_max_epochs": {"docs": 9.0}}
    other["data.sources.docs.weight"] = 2.0
    pipeline(other, only="curate", fresh=True)
    assert pipeline.run.read_config()["pretrain"]["z_loss"] == 0.9
    assert find_faults(pipeline.run)[0].startswith("tokenizer (of another ")
    assert pipeline(changes) == []
    config = pipeline.run.read_config()
    assert (
        config["pretrain"]["z_loss"] != 0.9 and config["data"]["sources"]["docs"]["weight"] == 1.0
    )
    assert not config["mixture"]["domain_max_epochs"] and find_faults(pipeline.run) == []


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [
        ("mixture.domain_max_epochs", {"docs": 9.0}, {"docs": 9.0, "code": 9.0}),
        ("data.sources.docs.weight", 1.0, 2.0),
    ],
)
def test_config_json_has_the_keys_of_mappings_and_the_weights_too(tmp_path, key, value, other):
    pipeline, stages = Pipeline(tmp_path), {"stages": ("curate", "tokenizer")}
    pipeline(stages | {key: value})
    pipeline(stages | {key: other}, only="curate", fresh=True)
    assert pipeline(stages | {key: value}) == []
    found = rundir.flatten(pipeline.run.read_config())
    wanted = rundir.flatten(value, key)
    assert {name: found[name] for name in found if name.startswith(key)} == wanted


@pytest.mark.parametrize("key", ["mixture.domain_max_epochs", "data.sources.docs.weight"])
def test_keys_of_mappings_and_weights_are_named_where_they_are_others(pipeline, key):
    pipeline()
    change = {key: 2.0} if key.endswith("weight") else {key: {"docs": 9.0}}
    pipeline(change, only="curate", fresh=True)
    assert find_faults(pipeline.run) == [
        f"{s} (of another {key})" for s in ("tokenizer", "pretrain")
    ]


@pytest.mark.parametrize("only", ["curate", None])
def test_a_command_without_work_leaves_the_keys_of_other_stages(pipeline, only):
    """Chat and export read them: the tokenizer's, say."""
    pipeline()
    before = pipeline.files()
    other = {"tokenizer.vocab_size": 999, "seed": 7} if only else {"seed": 0, "dpo.beta": 0.7}
    assert pipeline(other | {"stages": tuple(STAGES)[:3]}, only=only) == []
    assert pipeline.files() == before


def test_checkpoints_outlive_the_loss_of_started_json(pipeline):
    """done.json says of what inputs they are."""
    pipeline()
    kept = pipeline.run.checkpoints("sft") / "weights"
    kept.write_text("precious")
    pipeline.run.record_products("sft")
    (pipeline.run.stage("sft") / "started.json").unlink()
    pipeline()
    assert kept.read_text() == "precious" and pipeline.run.read_started("sft")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"hash": 1, "inputs": [], "code": {}}', "must be objects"),
        ('{"hash": 1, "inputs": {"upstream": []}, "code": {}}', "must be objects"),
        ("[", "not JSON"),
    ],
)
def test_a_started_json_of_another_shape_is_named_by_the_report(pipeline, content, words):
    pipeline()
    path = pipeline.run.stage("sft") / "started.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=words) as raised:
        write_report(pipeline.run.path)
    noted = str(raised.value)
    assert str(path) in noted and noted.count("remove") == 1


def test_a_model_of_earlier_results_is_said_to_be_one(pipeline):
    noted = []
    pipeline()
    load.note_doubts(pipeline.run, "ppo", noted.append)
    pipeline({"pretrain.optimizer.peak_lr": 0.1}, only="pretrain", fresh=True)
    for stage in ("ppo", "sft", "pretrain"):
        load.note_doubts(pipeline.run, stage, noted.append)
    why = "was made from an earlier result of stage 'pretrain' than there is now"
    assert noted == [f"ppo {why}", f"sft {why}"]
    (pipeline.run.stage("pretrain") / "done.json").unlink()
    load.note_doubts(pipeline.run, "pretrain", noted.append)
    assert noted[2:] == [
        "pretrain is not finished: this is the newest checkpoint that it has so far"
    ]


def own_conversations(pipeline, edit, at):
    """Conversations of the user's, edited while a stage runs."""
    own = pipeline.corpus.parent / "own.jsonl"
    own.write_text("first")
    body = pipeline.body

    def spy(name, inputs):
        if name == at:
            own.write_text(edit)
        if name == "sft":
            pipeline.job.refuse_changed_files()
        return body(name, inputs)

    pipeline.body = spy
    return own, {"sft.data": {"mine": {"path": str(own)}}}


def test_a_file_that_changes_before_its_stage_counts_as_it_is_then(pipeline):
    own, changes = own_conversations(pipeline, "second", "pretrain")
    pipeline(changes)
    pipeline.body = None  # nothing is called
    assert pipeline(changes) == []
    own.write_text("first")
    with pytest.raises(BadInput, match="sft: written with other content of sft.data.mine"):
        pipeline(changes)


def test_a_file_that_changes_while_it_is_read_leaves_nothing_to_go_on_from(pipeline):
    own, changes = own_conversations(pipeline, "second", "sft")
    with pytest.raises(BadInput, match=r"files that it reads changed meanwhile \(sft.data.mine\)"):
        pipeline(changes)
    assert pipeline.run.read_done("pretrain") and not pipeline.run.read_started("sft")
    assert pipeline(changes)[0] == "sft"
    own.write_text("first")
    with pytest.raises(BadInput, match="sft: written with other content of sft.data.mine"):
        pipeline(changes)


def test_what_unknown_keys_have_left_is_not_gone_on_from(pipeline):
    """Pairs lie in the stage's own folder."""
    pipeline.broken = "reward"
    with pytest.raises(RuntimeError):
        pipeline()
    left = pipeline.run.stage("reward") / "pairs.jsonl"
    (pipeline.run.stage("reward") / "started.json").unlink()
    with pytest.raises(BadInput, match="keys that are not known"):
        pipeline()
    rundir.remove(pipeline.run.checkpoints("reward"))
    body, found = pipeline.body, []
    pipeline.broken, pipeline.body = None, lambda *x: (found.append(left.exists()), body(*x))[1]
    assert pipeline()[0] == "reward" and not found[0]


@pytest.fixture
def edit_code(monkeypatch):
    def edit(stage, path):
        """Gives a stage code of another content."""
        path.write_text("x = 2")
        row = dataclasses.replace(STAGES[stage], code=(*STAGES[stage].code, str(path)))
        monkeypatch.setitem(STAGES, stage, row)

    return edit


@pytest.mark.parametrize("stage", ["curate", "tokenizer", "eval", "report"])
def test_other_code_of_a_stage_without_checkpoints_does_it_again(
    pipeline, tmp_path, edit_code, stage
):
    pipeline()
    edit_code(stage, tmp_path / "code.py")
    if stage in ("curate", "tokenizer"):
        # Its body's result is of its inputs, the code among them.
        with pytest.raises(BadInput, match="another result of stage"):
            pipeline()
        assert pipeline.called[0] == stage
    else:
        assert pipeline()[0] == stage


@pytest.mark.parametrize("stage", TRAINED)
def test_other_code_of_training_is_noted_and_nothing_is_deleted(
    pipeline, tmp_path, edit_code, capsys, stage
):
    pipeline()
    capsys.readouterr()
    assert pipeline() == []
    assert "other code" not in capsys.readouterr().err
    edit_code(stage, tmp_path / "code.py")
    assert pipeline() == []
    noted = capsys.readouterr().err
    assert f"] {stage}: its checkpoints were made by other code (commit" in noted
    pipeline.broken = stage
    with pytest.raises(RuntimeError):
        pipeline(only=stage, fresh=True)
    edit_code(stage, tmp_path / "more.py")
    capsys.readouterr()
    pipeline.broken = None
    assert pipeline() == [stage, "report"]
    assert f"{stage}: its checkpoints were made by other code" in capsys.readouterr().err, "resumed"


@pytest.mark.parametrize("content", [None, "{}", "["])
def test_a_config_json_that_is_gone_or_damaged_is_written_again(pipeline, content):
    pipeline()
    path = pipeline.run.path / "config.json"
    before = path.read_text()
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert pipeline() == [] and path.read_text() == before


def test_a_file_in_the_place_of_checkpoints_is_refused(pipeline):
    pipeline()
    rundir.remove(pipeline.run.checkpoints("sft"))
    pipeline.run.checkpoints("sft").write_text("mine")
    (pipeline.run.stage("sft") / "done.json").unlink()
    with pytest.raises(BadInput, match="checkpoints/sft: is not a directory; remove it"):
        pipeline()


def test_a_stage_whose_keys_are_not_known_is_not_made_again_below_checkpoints(pipeline):
    pipeline()
    (pipeline.run.stage("tokenizer") / "started.json").unlink()
    with pytest.raises(BadInput, match="keys that are not known, as .*started.json is gone"):
        pipeline({"tokenizer.vocab_size": 999}, only="tokenizer")


def test_a_tokenizer_is_not_made_of_other_texts_below_checkpoints(pipeline):
    pipeline()
    pipeline({"data.heldout_fraction": 0.3}, only="curate", fresh=True)
    with pytest.raises(BadInput, match="checkpoints/pretrain: depends on stage 'tokenizer'"):
        pipeline({"data.heldout_fraction": 0.3})
    assert pipeline.called == []


# They hold keys, files and lines, and compute nothing that a stage leaves.
AROUND = {
    *(ROOT / "launch" / f"{name}.py" for name in ("pipeline", "identity", "console", "settings")),
    *(ROOT / "launch" / f"{name}.py" for name in ("schema", "store/rundir", "stages/stage")),
    ROOT / "launch/job.py",  # annotates every stage; its methods serve those that train
}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[tuple[str, Path, str]]:
    """(name that is bound, file of ours that it comes from, its name there: '' for the file)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            place = ROOT / node.module.replace(".", "/")
            for alias in node.names:
                for path, name in ((place / f"{alias.name}.py", ""), (place, alias.name)):
                    if path.with_suffix(".py").exists():
                        yield alias.asname or alias.name, path.with_suffix(".py"), name


def uses(path: Path, name: str) -> Iterator[tuple[Path, str]]:
    """What a function or a constant of a file names: (file, name there)."""
    nodes = [
        node
        for node in parsed(path).body
        if name == getattr(node, "name", None)
        or any(name in ast.unparse(target) for target in getattr(node, "targets", []))
    ]
    bound = {name: (file, there) for name, file, there in imports(parsed(path))}
    for node in (child for parent in nodes for child in ast.walk(parent)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            file, there = bound.get(node.value.id, (None, ""))
            yield from [(file, node.attr)] if file and not there else []
        if isinstance(node, ast.Name):
            yield bound.get(node.id, (path, node.id))


def files_behind(body: Callable) -> set[Path]:
    """The files that a stage's body may run: in launch/ by what each function uses, else whole."""
    places, seen = [(Path(body.__code__.co_filename), body.__name__)], set()
    while places:
        file, name = places.pop()
        if (file, name) in seen or file in AROUND:
            continue
        seen.add((file, name))
        if ROOT / "launch" in file.parents:
            places += uses(file, name) if name else []
        else:
            places += [(path, "") for _, path, _ in imports(parsed(file))]
    return {file for file, _ in seen}


@pytest.mark.parametrize("name", tuple(STAGES))
def test_the_code_of_a_stage_is_all_that_its_body_may_run(name):
    stage = STAGES[name]
    listed = [ROOT / path for path in stage.code]
    found = files_behind(launch_pipeline.find_body(stage))
    assert len(found) > 3 or name == "curate"
    assert "launch/job.py" in stage.code or not stage.trains
    missing = {p for p in found if not any(p == place or place in p.parents for place in listed)}
    assert not missing


def test_a_reward_function_beside_the_command_counts_by_its_file(tmp_path, monkeypatch):
    """In a folder too, and where the command's own folder is first in the path of modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "own_rewards").mkdir()
    file = tmp_path / "own_rewards" / "short.py"

    def found(function):
        config = quickstart.get_config()
        config.stages = ("curate", "tokenizer", "pretrain", "sft", "grpo")
        config.reward = {"function": function}
        return describe_files(settings.parse(config), "grpo")["content"]["reward.function"]

    assert found("own_rewards.short:score") == "absent"
    assert found("own_nowhere.short:score") == "absent"
    file.write_text("def score(example, answer):\n    return 1.0\n")
    before = found("own_rewards.short:score")
    assert before == rundir.hash_file(file)
    file.write_text("def score(example, answer):\n    return 2.0\n")
    assert found("own_rewards.short:score") != before


def test_dpo_needs_no_reward_model():
    """It reads the pairs of the section `reward`, and no result of that stage."""
    config = quickstart.get_config()
    config.stages = ("curate", "tokenizer", "pretrain", "sft", "dpo")
    parsed = settings.parse(config)
    assert parsed.reward.seq_len and STAGES["dpo"].upstream(parsed.stages) == ("tokenizer", "sft")
