"""What a stage's identity holds: the results that it stands on, and the code that computes it."""

import dataclasses

import pytest

from data.errors import BadInput
from launch import settings
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
