"""What a stage's identity holds: the results that it stands on, and the code that computes it."""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.errors import BadInput
from launch import rundir, settings, stages
from launch.pipeline import describe_inputs
from launch.report import unfinished
from launch.rundir import ROOT
from tests.test_launch_pipeline import Pipeline

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
        return describe_inputs(settings.parse(pipeline.config), stages.TABLE)

    before, after = describe(1.0), describe(5.0)
    found = {name for name in before if before[name] != after[name]}
    assert found == {"tokenizer", "pretrain"}


def test_the_report_names_results_of_earlier_models(pipeline):
    pipeline()
    assert unfinished(pipeline.run.path) == []
    pipeline({"dpo.beta": 0.5}, only="dpo", fresh=True)
    assert unfinished(pipeline.run.path) == ["eval (of an earlier dpo)"]


def edit_code(pipeline, stage, path):
    """Gives a stage code of another content."""
    path.write_text("x = 2")
    code = (*pipeline.table[stage].code, str(path))
    pipeline.table = {
        **pipeline.table,
        stage: dataclasses.replace(pipeline.table[stage], code=code),
    }


@pytest.mark.parametrize("stage", ["curate", "tokenizer", "eval", "report"])
def test_other_code_of_a_stage_without_checkpoints_does_it_again(pipeline, tmp_path, stage):
    pipeline()
    edit_code(pipeline, stage, tmp_path / "code.py")
    if stage in ("curate", "tokenizer"):
        # Its body's result is of its inputs, the code among them.
        with pytest.raises(BadInput, match="another result of stage"):
            pipeline()
        assert pipeline.called[0] == stage
    else:
        assert pipeline()[0] == stage


@pytest.mark.parametrize("stage", settings.TRAINED)
def test_other_code_of_training_is_said_and_throws_nothing_away(pipeline, tmp_path, capsys, stage):
    pipeline()
    capsys.readouterr()
    assert pipeline() == []
    assert "other code" not in capsys.readouterr().err
    edit_code(pipeline, stage, tmp_path / "code.py")
    assert pipeline() == []
    said = capsys.readouterr().err
    assert f"] {stage}: its checkpoints were made by other code (commit" in said
    pipeline.broken = stage
    with pytest.raises(RuntimeError):
        pipeline(only=stage, fresh=True)
    edit_code(pipeline, stage, tmp_path / "more.py")
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
    with pytest.raises(BadInput, match="checkpoints/sft: is no folder; remove it, or give --fresh"):
        pipeline()


def test_a_stage_whose_keys_are_not_known_is_not_made_anew_below_checkpoints(pipeline):
    pipeline()
    (pipeline.run.stage("tokenizer") / "started.json").unlink()
    with pytest.raises(BadInput, match="keys that are not known, as .*started.json is gone"):
        pipeline({"tokenizer.vocab_size": 999}, only="tokenizer")


# They hold keys, files and lines, and compute nothing that a stage leaves.
AROUND = {
    ROOT / "launch" / name for name in ("pipeline.py", "rundir.py", "console.py", "settings.py")
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
        if file.parent.name == "launch":
            places += uses(file, name) if name else []
        else:
            places += [(path, "") for _, path, _ in imports(parsed(file))]
    return {file for file, _ in seen}


@pytest.mark.parametrize("name", settings.STAGES)
def test_the_code_of_a_stage_is_all_that_its_body_may_run(name):
    stage = stages.TABLE[name]
    listed = [ROOT / path for path in stage.code]
    found = files_behind(inspect.unwrap(stage.body))
    assert len(found) > 3
    missing = {p for p in found if not any(p == place or place in p.parents for place in listed)}
    assert not missing
