"""A model to start from, and data of one's own, in every stage, through the command line."""

import json

import jax
import numpy as np
import pytest

from launch import load
from launch.store.rundir import RunDir
from model import decode, transformer
from tests.launch.test_stages import ROOT, SMALL, metrics, parse, seedbed, sources

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = f"--config={ROOT}/configs/quickstart.py"
BASE = "('curate','tokenizer','pretrain')"
SCHEDULE = {"pretrain.optimizer.schedule": "wsd", "pretrain.loop.keep_checkpoints": 9}
WORDS = ("red", "green", "blue", "black", "white", "brown", "grey", "pink")


def start(folder, run, stages, *flags, **changes):
    """Runs the stages of the shrunk quickstart in `folder/run`."""
    chosen = SMALL | sources(folder / "text") | {"stages": stages} | changes
    return seedbed(
        "run", CONFIG, f"--run={folder}/{run}", "--json", "--workers=1", *flags, **chosen
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a pretrained run in it."""
    folder = tmp_path_factory.mktemp("start")
    code, _, err = start(
        folder,
        "base",
        BASE,
        **SCHEDULE | {"pretrain.loop.num_steps": 4, "pretrain.loop.save_every": 1},
    )
    assert code == 0, err
    return folder


def write_own(folder):
    """Conversations, prompts and pairs of one's own; one of each is too long, one malformed."""
    answers = [{"prompt": f"Name colour {i}", "answer": WORDS[i % 8]} for i in range(40)]
    pairs = [
        {"prompt": f"Name colour {i}", "chosen": WORDS[i % 8], "rejected": WORDS[(i + 1) % 8]}
        for i in range(40)
    ]
    long = " ".join(WORDS * 60)
    for name, rows, more in (
        ("own", answers, {"prompt": long, "answer": long}),
        ("pairs", pairs, {"prompt": long, "chosen": long, "rejected": "no"}),
    ):
        lines = [json.dumps(row) for row in (*rows, more)] + ["{"]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {
        "sft.data.mine.path": folder / "own.jsonl",
        "reward.data.mine.path": folder / "pairs.jsonl",
        "ppo.rollout.data.mine.path": folder / "own.jsonl",
        **{
            f"{section}.data.mine.heldout_fraction": 0.3
            for section in ("sft", "reward", "ppo.rollout")
        },
    }


def test_a_run_of_ones_own_is_loaded_in_one_line(base):
    config, params, tokenizer = load.load_run(base / "base")
    ids = np.asarray([[tokenizer.bos_id, *tokenizer.encode("The")]])
    logits = transformer.forward(config, params, ids)
    assert logits.shape == (1, ids.shape[1], config.vocab_size) and np.isfinite(logits).all()
    made = decode.generate(
        *(config, params, ids, np.ones_like(ids), jax.random.key(0)),
        **dict(max_new_tokens=3, temperature=0.0, end_id=-1, pad_id=0),
    )
    assert made.tokens_BR.shape == (1, 3)


def test_continued_pretraining_starts_where_the_other_run_ended(base):
    code, out, err = start(base, "more", BASE, start=base / "base")
    assert code == 0, err
    was, now = metrics(base / "base")["pretrain"], metrics(base / "more")["pretrain"]
    assert now[0]["loss"] < was[0]["loss"] - 0.1, "not fresh weights"
    assert parse(out)["stages"]["pretrain"]["params_sha256"]


def test_a_branch_at_a_step_with_its_moments_goes_on_as_the_run_did(base):
    """At a constant rate the branch is the run itself: the same data, weights and moments."""
    constant = SCHEDULE | {"pretrain.optimizer.decay_fraction": 0.0, "pretrain.loop.save_every": 1}
    constant |= {"pretrain.optimizer.warmup_steps": 0, "pretrain.optimizer.final_lr_fraction": 1.0}
    code, _, err = start(base, "whole", BASE, **constant | {"pretrain.loop.num_steps": 3})
    assert code == 0, err
    branch = constant | {"start": f"{base}/whole:pretrain:2", "pretrain.loop.num_steps": 1}
    losses = {}
    for name, kept in (("kept", True), ("fresh", False)):
        code, _, err = start(base, name, BASE, **branch | {"start_optimizer": kept})
        assert code == 0, err
        losses[name] = load.load_run(base / name)[1]
    whole = load.load_run(base / "whole")[1]

    def distance(params):
        """Of the last update: first batches differ, moments decide most of it."""
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True)
        return float(sum(np.square(np.asarray(a) - np.asarray(b)).sum() for a, b in pairs))

    assert distance(losses["kept"]) < 0.5 * distance(losses["fresh"])


def test_chat_stages_start_from_a_run_without_pretraining_of_their_own(base):
    own = write_own(base)
    stages = "('tokenizer','sft','reward','dpo','ppo','eval','report')"
    code, out, err = start(base, "chat", stages, start=f"{base}/base:pretrain", **own)
    assert code == 0, err
    summary = parse(out)["stages"]
    assert "sft.data.mine: 41 rows," in err and "1 (2.4%) malformed and left out" in err
    assert "longer than sft.seq_len" in err and "longer than reward.seq_len" in err
    assert "over max_prompt_tokens" in err
    results = json.loads((base / "chat/eval/results.json").read_text())
    assert set(results["dialog"]) == {"start", "sft", "dpo", "ppo"}
    assert results["dialog"]["sft"]["kinds"]["mine"]["count"] == 2  # num_heldout_per_kind
    assert set(summary["reward"]["heldout_accuracy_by_set"]) == {"pairs", "mine"}
    lines = metrics(base / "chat")
    for stage, metric in (
        ("sft", "loss"),
        ("reward", "accuracy"),
        ("dpo", "loss"),
        ("ppo", "reward"),
    ):
        seen = {name for line in lines[stage] for name in line}
        assert {f"heldout/{metric}", f"heldout_mine/{metric}"} <= seen, stage
    page = (base / "chat/report.html").read_text()
    assert "held out (mine)" in page and "mine" in page and "Start" in page
    code, out, err = seedbed("chat", f"--run={base}/chat", "--prompt=Name colour 3", "--json")
    assert code == 0 and json.loads(out)["stage"] == "ppo"
    assert RunDir(base / "chat").read_done("tokenizer")["summary"].keys() == {
        "vocab_size",
        "tokenizer_sha256",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": "nowhere"}, "nowhere: no such run"),
        ({"start": "BASE:sft"}, ":sft: no model of it is in {base}/base; it has pretrain"),
        ({"start": "BASE:pretrain:99"}, "no checkpoint of step 99; there are [1, 2, 3, 4]"),
        ({"start": "BASE", "model.d_model": 48}, "model.d_model is 48; it must be"),
        ({"stages": "('tokenizer','sft')"}, "stages has 'tokenizer'; it needs 'curate' too"),
        ({"stages": "('curate','tokenizer','sft')"}, "stages has 'sft'; it needs 'pretrain' too"),
    ],
)
def test_a_start_that_is_not_there_or_does_not_fit_is_one_line(base, changes, words):
    changes = {
        key: str(value).replace("BASE", str(base / "base")) for key, value in changes.items()
    }
    stages = changes.pop("stages", BASE)
    code, _, err = start(base, "wrong", stages, **changes)
    assert code == 2 and words.format(base=base) in err.splitlines()[-1], err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": "{base}/again"}, "start={base}/again: no such run"),
        ({"start": "{base}/base:pretrain:77"}, "no checkpoint of step 77; there are [1, 2, 3, 4]"),
        ({"start": "{base}/base", "model.head": "untied"}, "model.head is 'untied'; it must be"),
        ({"start": "{base}/base", "model.vocab_size": 64}, "it must be 600, as in start="),
        ({"sft.data.mine.path": "{base}/wrong.jsonl"}, "wrong.jsonl"),
        ({"reward.function": "colours:absent"}, "reward.function is 'colours:absent'"),
        ({"reward.function": "nocolon"}, "allowed: grade, or MODULE:NAME"),
        ({"eval.tasks": "('mmlu',)", "eval.data": "{base}/few"}, "2 examples are to be shown"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_anything_is_done(base, changes, words):
    (base / "wrong.jsonl").write_text('{"colour": "red"}\n')
    (base / "few/mmlu").mkdir(parents=True, exist_ok=True)
    for split, number in (("dev", 1), ("test", 2)):
        rows = [f"Q{i}?,a,b,c,d,A\n" for i in range(number)]
        (base / f"few/mmlu/sums_{split}.csv").write_text("".join(rows))
    given = {key: value.format(base=base) if isinstance(value, str) else value
             for key, value in changes.items()}  # fmt: skip
    stages = "('curate','tokenizer','pretrain','sft','grpo','eval')"
    given = {"reward.function": "grade", "eval.num_shots": 2} | given
    code, _, err = start(base, "refused", stages, **given)
    assert code == 2 and words.format(base=base) in err and err.count("\n") == 1, err
    assert not (base / "refused").exists()


def test_a_run_does_not_start_from_itself(base):
    code, _, err = start(base, "base", BASE, start=f"{base}/base")
    assert code == 2 and "is this run itself" in err, err


def test_a_fresh_stage_that_is_refused_keeps_what_it_had(base):
    """A function that fails at the first answers: the reward's sums are known only then."""
    (base / "colours.py").write_text("def fails(example, answer):\n    return 'red'\n")
    stages = "('curate','tokenizer','pretrain','sft','grpo')"
    given = {"reward.function": "grade", "grpo.loop.num_steps": 1}
    code, _, err = start(base, "grown", stages, **given)
    assert code == 0, err
    files = [path for path in (base / "grown/checkpoints/grpo").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        given["reward.function"] = "colours:fails"
        chosen = SMALL | sources(base / "text") | {"stages": stages} | given
        code, _, err = seedbed("grpo", CONFIG, f"--run={base}/grown", "--json", "--fresh", **chosen)
    assert code == 2 and "reward.function colours:fails gave 'red' for example" in err, err
    assert before and all(path.read_bytes() == content for path, content in before.items())
    assert RunDir(base / "grown").read_done("grpo")
