"""What may differ between an imported model and the run that goes on training it."""

import collections
import dataclasses
import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from alignment.preference import Pair
from data.conversations import OwnSet, PairText, Read
from data.errors import BadInput
from data.quickstart import instruct
from launch import load, own_sets, schema, settings
from launch.job import Job
from launch.stages import conversations, pairs, prompts, sft
from launch.store.rundir import RunDir, write_json
from model import sharding
from model.config import MoEConfig, TransformerConfig
from model.sharding import MeshConfig
from tests import chat_oracle
from tests.alignment.test_rollout import Letters
from tests.tiny import replace, whole_config


def job(size=60, **loop):
    """Of a stage of a model of so many ids."""
    section = SimpleNamespace(loop=SimpleNamespace(**loop), seq_len=3)
    model = TransformerConfig(size, 2, 16, 4, 2, 4, 32)
    settings = SimpleNamespace(seed=0, reward=section, model=model, mesh=MeshConfig())
    return Job(settings, None, None, None, "reward", {})


@pytest.mark.parametrize("bad", [60, -1])
def test_a_row_with_a_token_that_the_model_does_not_have_is_refused(bad):
    """By the loader of every stage, before the device would take another token's embedding."""
    rows = [{"tokens": np.array([59, 0, number], np.int32)} for number in (1, 2, 3, bad)]
    fine = job(batch_size=3).loader({"a": (rows[:3], 1.0)})
    assert next(fine)["tokens"].shape == (3, 3)
    loader = job(batch_size=4).loader({"a": (rows, 1.0)})
    with pytest.raises(BadInput, match=f"'a'.*holds token {bad}; ids must be in .0, 60."):
        next(loader)


def test_templates_of_a_run_print_the_day_that_its_configuration_names(tmp_path):
    """Not today's: the rows of a run that goes on after midnight would be others."""
    run = RunDir(tmp_path)
    chat_oracle.write_folder(run.stage("tokenizer"), "qwen2.5")
    described = {"tokenizer": {"path": "given", "vocab_size": 999, "control": ()}, "start": ""}
    described |= {"model": {"vocab_size": 999}, "instruct": {"date": "2025-12-31"}}
    write_json(tmp_path / "config.json", {"config": described})
    assert load.load_tokenizer(run).date == datetime.datetime(2025, 12, 31)


@pytest.mark.parametrize(("key", "value"), [("control", ["<b>", "<a>"]), ("vocab_size", 900)])
def test_how_a_tokenizer_is_used_is_part_of_what_a_model_is_trained_with(tmp_path, key, value):
    """Roles in another order are another chat format, of the same files."""
    run = RunDir(tmp_path)
    chat_oracle.write_folder(run.stage("tokenizer"), "qwen2.5")
    used = {"control": ["<a>", "<b>"], "vocab_size": 999}
    write_json(tmp_path / "config.json", {"config": {"tokenizer": used}})
    saved = {load.TOKENIZER: load.tokenizer_hash(run)}
    load.refuse_other_tokenizer(run, "sft", saved)
    write_json(tmp_path / "config.json", {"config": {"tokenizer": used | {key: value}}})
    with pytest.raises(BadInput, match="not the tokenizer that sft was trained with"):
        load.refuse_other_tokenizer(run, "sft", saved)


def test_pairs_with_a_token_that_the_model_does_not_have_are_refused():
    pair = Pair((1, 2, 3), (4, 59), (5, 6), 1.0)
    made = job(40)
    made.section.seq_len, made.tokenizer = 8, SimpleNamespace(pad_id=0)
    with pytest.raises(BadInput, match="token 59"):
        pairs._to_rows(made, "pairs", [pair, pair])


def own_job(monkeypatch, train, heldout):
    """Of a stage with rows of 40 tokens and one set of the user's own; notes are kept."""
    made, notes = job(300, batch_size=1), []
    made.tokenizer, made.refuse_changed_files = Letters(), lambda: None
    made.progress = SimpleNamespace(note=notes.append)
    section = made.section
    section.seq_len, section.data, section.z_loss = 40, {"mine": OwnSet("x")}, 0.0
    section.pairs = SimpleNamespace(num_prompts=0)
    section.rollout = SimpleNamespace(max_prompt_tokens=40)
    made.settings.eval, made.settings.mesh = SimpleNamespace(num_heldout=8), MeshConfig(data=1)
    monkeypatch.setattr(own_sets, "read", lambda *_: {"mine": Read(train, heldout, [])})
    sets = conversations.Sets({"mine": train}, {"mine": heldout}, {"mine": 1.0})
    monkeypatch.setattr(conversations, "read", lambda _: sets)
    return made, notes


def demonstration(text):
    messages = ({"role": "user", "content": text},)
    return instruct.Example("0", "mine", messages, "yes", "exact", "yes")


def asked(text):
    return PairText(({"role": "user", "content": text},), "yes", "no")


@pytest.mark.parametrize(
    ("read", "make", "words"),
    [
        (lambda made: pairs.load(made, None), asked, "pairs fits into reward.seq_len, which is 40"),
        (prompts.read, demonstration, "prompts fits into rollout.max_prompt_tokens, which is 40"),
        (sft.run, demonstration, "conversations fits into sft.seq_len, which is 40"),
    ],
    ids=["pairs", "prompts", "conversations"],
)
def test_what_all_is_too_long_is_refused_to_train_on_and_noted_where_it_is_held_out(
    monkeypatch, read, make, words
):
    short, long = [make("a")], [make("a" * 80)]
    with pytest.raises(BadInput, match=f"^mine: no.* of 1 {words}"):
        read(own_job(monkeypatch, long, short)[0])
    made, notes = own_job(monkeypatch, short, long)
    made.heldout = lambda _, heldout, __: heldout
    made.start_params, found = lambda: None, []
    monkeypatch.setattr(sft, "params_hash", lambda _: "")
    made.train = lambda *_, evaluators, **__: found.append(evaluators) or SimpleNamespace(params={})
    answer = read(made)
    assert (found[0] if found else answer.heldout) == {}
    assert [note for note in notes if "mine, held out:" in note and "1 (100.0%)" in note]


def test_heldout_rows_go_through_the_model_as_many_at_once_as_in_training(monkeypatch):
    seen = []
    monkeypatch.setattr("launch.job.heldout_loss", lambda *given: seen.append(given))
    made = job(batch_size=8, num_microbatches=4)
    made.mesh = None
    found = made.heldout(None, {"": ["row"], "mine": ["row"], "none": []})
    assert found.keys() == {"heldout", "heldout_mine"}
    assert [given[2] for given in seen] == [2, 2]


def test_conversations_of_every_kind_are_measured_while_training():
    built = instruct.InstructConfig(num_train=10, num_heldout_per_kind=3)
    for count, wanted in ((0, 0), (2, 2), (9, 3)):
        chosen = conversations.first(instruct.build(built)["heldout"], count)
        found = collections.Counter(example.kind for example in chosen)
        assert found == {kind: wanted for kind in instruct.KINDS if wanted}


def test_tuning_may_change_how_a_model_is_trained_and_not_which_it_is():
    moe = MoEConfig(num_experts=4, top_k=2, d_ff=8)
    found = TransformerConfig(60, 2, 16, 4, 2, 4, 32, moe=moe)
    free = dataclasses.replace(moe, aux_loss=0.1, z_loss=0.1, dispatch="capacity")
    load.refuse_other_model(
        found, replace(found, moe=free, vocab_multiple=8, remat="full"), Path("RUN")
    )
    other = dataclasses.replace(found, moe=dataclasses.replace(moe, top_k=1))
    with pytest.raises(BadInput, match="model.moe.top_k is 1; it must be 2, as in start=RUN"):
        load.refuse_other_model(found, other, Path("RUN"))


def test_rules_of_the_sharding_table_are_keys():
    """They come back from config.json, and rows are checked by the axes that split them."""
    rules = dict(weight_rules=dict(F=["fsdp"]), activation_rules=dict(B=["data"]))
    config = whole_config()
    config["mesh"] |= dict(data=4, fsdp=2, **rules)
    parsed = settings.parse(config)
    assert "mesh" not in schema.identity(parsed)
    assert schema.to_dict(settings.fit_mesh(parsed).mesh).items() >= rules.items()
    mesh = sharding.make_mesh(parsed.mesh)
    assert tuple(sharding.batch_sharding(mesh).spec) == ("data",)
    config["pretrain"]["loop"]["batch_size"] = 6
    with pytest.raises(BadInput, match="batch_size is 6; it must divide by mesh.data, which is 4"):
        settings.fit_mesh(settings.parse(config))
    config["mesh"]["weight_rules"] = dict(F=["rows"])
    with pytest.raises(BadInput, match=r"mesh.weight_rules.F is \('rows',\); it must be some of"):
        settings.parse(config)
