"""Settings: what fits becomes frozen dataclasses; a misfit is one message that names its key."""

import copy
import dataclasses
import json
import math

import pytest

from configs import families, quickstart
from data.errors import BadInput
from launch import schema, settings
from launch.stages.stage import STAGES
from model.sharding import AXES
from tests.tiny import whole_config

QUICKSTART = whole_config()
QUICKSTART["model"]["vocab_size"] = 0


def nested() -> dict:
    """The quickstart as plain nested dicts, to be changed."""
    return copy.deepcopy(QUICKSTART)


def leaves(section: dict, path: tuple[str, ...] = ()):
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def sections(section: dict, path: tuple[str, ...] = ()):
    yield path
    for key, value in section.items():
        if isinstance(value, dict):
            yield from sections(value, (*path, key))


def change(config: dict, path: tuple[str, ...] | str, value: object) -> dict:
    """The same config with another value at a path; changes it in place."""
    *parents, key = path.split(".") if isinstance(path, str) else path
    section = config
    for parent in parents:
        section = section[parent]
    section[key] = value
    return config


def find(config: dict, path: tuple[str, ...]) -> object:
    for key in path:
        config = config[key]
    return config


LEAVES = list(leaves(nested()))
SECTIONS = list(sections(nested()))
# A score may have either sign.
UNBOUNDED = {(stage, "rollout", "missing_eos_score") for stage in ("ppo", "grpo")}


def dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)


def test_quickstart_parses_to_frozen_values_of_the_declared_types():
    parsed = settings.parse(quickstart.get_config())
    assert parsed.pretrain.loop.num_steps == quickstart.get_config().pretrain.loop.num_steps
    assert parsed.data.sources["docs"].gates == quickstart.PROSE_GATES
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed.seed = 1
    with pytest.raises(TypeError):
        parsed.data.sources["more"] = parsed.data.sources["docs"]


def test_settings_survive_json():
    parsed = settings.parse(nested())
    again = settings.parse(json.loads(json.dumps(schema.to_dict(parsed))))
    assert schema.to_dict(again) == schema.to_dict(parsed)


def test_settings_hold_every_key_of_the_config():
    assert set(leaves(schema.to_dict(settings.parse(nested())))) == set(LEAVES)


def refusal(config: dict) -> str:
    """The message that refuses the config; '' if it is taken."""
    try:
        settings.parse(config)
    except BadInput as error:
        return str(error)
    return ""


def test_wrong_type_is_refused_by_its_key():
    whys = {dotted(path): refusal(change(nested(), path, 1j)) for path in LEAVES}
    wrong = {key: why for key, why in whys.items() if not why.startswith(f"{key} is 1j; it must")}
    assert not wrong


def test_numbers_are_taken_or_refused_in_words():
    """Whatever a range check forgets must not end in another exception than BadInput."""
    numbers = {int: (0, -1, 10**9), float: (0.0, -1.0, math.inf, -1e99)}
    for path in LEAVES:
        kind = type(find(nested(), path))
        whys = [refusal(change(nested(), path, number)) for number in numbers.get(kind, ())]
        # Keys of one section may be refused for each other: a latent needs rotated dims.
        names = (path[-1], dotted(path[:-1])) if len(path) > 2 else (path[-1],)
        wrong = [why for why in whys if why and not any(name in why for name in names)]
        assert not wrong, dotted(path)
        assert any(whys) or path in UNBOUNDED or not whys, f"{dotted(path)} takes any number"


def test_unknown_key_is_refused_in_every_section():
    for path in SECTIONS:
        config = nested()
        find(config, path)["surprise"] = 1
        why = refusal(config)
        assert "surprise" in why and dotted(path) in why, dotted(path)


def test_missing_key_is_refused_in_every_section():
    """All but those that have a default, which it then is."""
    missing = set()
    for path in LEAVES:
        config = nested()
        del find(config, path[:-1])[path[-1]]
        why = refusal(config)
        missing |= {path} if why else set()
        assert path[-1] in why or not why, dotted(path)
    assert {path for path in missing if path[0] != "model"} == {
        ("name",),
        ("stages",),
        ("data", "sources", "docs", "path"),
        ("data", "sources", "code", "path"),
    }
    assert ("model", "d_model") in missing


def test_a_value_for_a_section_is_refused():
    for path in filter(None, SECTIONS):
        why = refusal(change(nested(), path, 3))
        assert why == f"{dotted(path)} is 3; it must be a section with keys"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.num_kv_heads", 99, "model.num_kv_heads is 99; it must be a divisor of"),
        ("model.head_dim", 7, "model.head_dim is 7; it must be even"),
        ("model.head", "scalar", "model.head is 'scalar'; it must be 'tied' or 'untied'"),
        ("model.dtype", "float8", "'float32', 'bfloat16'"),
        ("layout.remat", "most", "layout.remat is 'most'"),
        ("model.num_layers", True, "model.num_layers is True; it must be of type int"),
        ("seed", 1.0, "seed is 1.0; it must be of type int"),
        ("name", 3, "name is 3; it must be of type str"),
        ("data.sources.docs.weight", -1.0, "weight: -1.0 must be above 0 and below 1e+30"),
        ("data.sources.docs.weight", 1e30, "weight: 1e+30 must be above 0 and below 1e+30"),
        ("data.sources.docs.weight", 10**400, "data.sources.docs.weight is larger than any float"),
        ("data.sources.docs.weight", math.nan, "data.sources.docs.weight is nan"),
        ("data.sources.docs.gates", ("length", "lenght"), "'lenght' is not one of gopher"),
        ("data.sources.docs.gates", ("length", 3), "data.sources.docs.gates[1] is 3"),
        ("data.sources", {}, "sources: empty"),
        ("data.heldout_fraction", 0.9, "heldout_fraction: 0.9 must be above 0 and at most 0.5"),
        ("pretrain.loop.num_microbatches", 999, "it must be a divisor of batch_size = "),
        ("pretrain.optimizer.warmup_steps", 10**6, "pretrain.optimizer: warmup_steps is 1000000"),
        ("sft.loop.num_steps", 1, "it must be below num_steps = 1"),
        ("ppo.optimizer.warmup_steps", 10**6, "ppo.optimizer: warmup_steps is 1000000"),
        ("ppo.critic_optimizer.warmup_steps", 10**6, "ppo.critic_optimizer: warmup_steps is"),
        (
            "ppo.rollout.num_minibatches",
            999,
            "ppo.rollout.num_minibatches is 999; with loop.num_microbatches",
        ),
        ("ppo.rollout.temperature", 0.0, "ppo.rollout.temperature is 0.0"),
        ("dpo.kind", "hinge", "'hinge'"),
        (
            "reward.pairs.max_new_tokens",
            999,
            "reward.pairs.max_new_tokens is 999; it must be below seq_len",
        ),
        ("reward.seq_len", 1, "it must be below seq_len = 1"),
        ("mixture.budget_tokens", 10**22, "mixture.budget_tokens=10000000000000000000000: must be"),
        ("pretrain.seq_len", 2**62, "pretrain.seq_len is 4611686018427387904; it must be at least"),
        ("cost.machine_watts", 0.0, "cost.machine_watts is 0.0; it must be above 0"),
        ("stages", (), "stages is (); it must be some of"),
        ("stages", ("curate", "tokenize"), "stages has 'tokenize'; allowed: curate, tokenizer"),
        ("stages", ("curate", "curate"), "each once, in this order"),
        ("stages", ("tokenizer", "curate"), "each once, in this order"),
        ("stages", ("curate", "tokenizer", "sft"), "stages has 'sft'; it needs 'pretrain' too"),
        ("stages", ("curate", "eval"), "stages has 'eval'; it needs 'tokenizer' too"),
    ],
)
def test_value_out_of_range_is_named_with_what_is_allowed(path, value, words):
    why = refusal(change(nested(), path, value))
    assert words in why and "\n" not in why


def test_whole_numbers_do_for_floats_and_lists_for_tuples():
    config = change(nested(), "data.sources.docs.weight", 2)
    config = change(config, "data.sources.docs.gates", ["length"])
    source = settings.parse(config).data.sources["docs"]
    assert (source.weight, source.gates) == (2.0, ("length",))
    assert isinstance(source.weight, float)


def test_infinity_is_a_number():
    parsed = settings.parse(change(nested(), "ppo.dual_clip", math.inf))
    assert parsed.ppo.dual_clip == math.inf
    # JSON has none: jq, say, would not read the run's config.json.
    text = json.dumps(schema.to_dict(parsed), allow_nan=False)
    assert settings.parse(json.loads(text)) == parsed


def shrunk(**mesh) -> object:
    """Settings on a mesh of the eight devices, with heads and widths that it can split."""
    return settings.parse(change(nested(), "mesh", nested()["mesh"] | mesh))


@pytest.mark.parametrize("mesh", [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=8)])
def test_mesh_that_fits_passes(mesh):
    fitted = settings.fit_mesh(shrunk(**mesh))
    assert fitted.mesh.axis_sizes() == dict.fromkeys(AXES, 1) | mesh


@pytest.mark.parametrize(
    ("mesh", "filled"),
    [
        (dict(), dict(data=8)),  # the config's own
        (dict(tensor=2), dict(data=4, tensor=2)),
        (dict(fsdp=8), dict(data=1, fsdp=8)),
        (dict(data=2, fsdp=-1), dict(data=2, fsdp=4)),
    ],
)
def test_one_axis_takes_the_devices_that_the_others_leave(mesh, filled):
    fitted = settings.fit_mesh(shrunk(**mesh))
    assert fitted.mesh.axis_sizes() == dict.fromkeys(AXES, 1) | filled
    assert schema.to_dict(fitted)["mesh"]["data"] == filled["data"], "as config.json records it"


def test_rows_are_checked_against_the_filled_axis():
    config = change(nested(), "pretrain.loop.batch_size", 12)
    with pytest.raises(BadInput, match="pretrain.loop.batch_size is 12; it must divide by .* 8"):
        settings.fit_mesh(settings.parse(config))


ROWS_OF_A_PART = "it must divide by mesh.data x mesh.fsdp x mesh.expert, which is"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                **dict.fromkeys(("mesh.context", "layout.stage_microbatches"), 4),
                "mesh.data": 1,
                "mesh.stage": 2,
                "eval.batch_size": 6,
            },
            "eval: layout.stage_microbatches is 4; it must divide the 6 rows",
        ),
        # 64 answers in 32 minibatches are 2 rows, and 4 microbatches of the pipeline do not cut 2.
        (
            {
                **dict.fromkeys(("mesh.context", "layout.stage_microbatches"), 4),
                "mesh.data": 1,
                "mesh.stage": 2,
                "ppo.rollout.num_minibatches": 32,
            },
            "ppo: layout.stage_microbatches is 4; it must divide the 2 rows",
        ),
        (
            {"ppo.rollout.num_minibatches": 16},
            f"ppo.loop.batch_size is 64, 4 in each of 16 parts; {ROWS_OF_A_PART} 8",
        ),
        (
            {"ppo.rollout.num_minibatches": 4, "ppo.loop.num_microbatches": 4},
            "64, 4 in each of 16 parts",
        ),
        ({"ppo.rollout.num_minibatches": 4, "ppo.loop.num_microbatches": 2}, ""),
        ({"pretrain.loop.num_microbatches": 4}, "16, 4 in each of 4 parts"),
        # A pair is two rows of the model.
        (
            {"mesh.stage": 2, "layout.stage_microbatches": 32, "sft.loop.batch_size": 64},
            "pretrain: layout.stage_microbatches is 32; it must divide the 16 rows",
        ),
        (
            {
                "mesh.stage": 2,
                "layout.stage_microbatches": 32,
                **{f"{name}.loop.batch_size": 32 for name in ("pretrain", "sft", "ppo")},
                **{f"{name}.loop.batch_size": 16 for name in ("reward", "dpo")},
                "ppo.rollout.num_minibatches": 1,
            },
            "",
        ),
        (
            {
                "mesh.stage": 2,
                "layout.stage_microbatches": 32,
                **{f"{name}.loop.batch_size": 32 for name in ("pretrain", "sft", "ppo", "dpo")},
                "reward.loop.batch_size": 8,
                "ppo.rollout.num_minibatches": 1,
            },
            "reward: layout.stage_microbatches is 32; it must divide the 16 rows",
        ),
    ],
)
def test_rows_of_every_pass_through_the_model_are_checked(changes, words):
    config = nested()
    for key, value in changes.items():
        change(config, key, value)
    parsed = settings.parse(config)
    if words:
        with pytest.raises(BadInput, match=words):
            settings.fit_mesh(parsed)
    else:
        settings.fit_mesh(parsed)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (dict(data=3), "3 devices asked, 8 present"),
        (dict(tensor=8), "mesh.tensor is 8, but dim"),  # two kv heads
        (dict(data=1, fsdp=1000), "1000 devices asked"),
        (dict(tensor=3), "mesh.data is -1: it takes .* of 8 devices; their product is 3"),
    ],
)
def test_impossible_mesh_is_refused_with_the_numbers(mesh, words):
    with pytest.raises(BadInput, match=words):
        settings.fit_mesh(shrunk(**mesh))


def test_rows_that_do_not_split_over_the_mesh_are_refused():
    config = change(nested(), "mesh", nested()["mesh"] | dict(data=4, fsdp=2))
    config = change(config, "dpo.loop.batch_size", 12)
    with pytest.raises(BadInput, match="dpo.loop.batch_size is 12; it must divide by .* 8"):
        settings.fit_mesh(settings.parse(config))


# What clashes in a section, with the stages that use it.
CLASHES = {
    "pretrain.optimizer.warmup_steps": (10**6, "pretrain"),
    "sft.loop.num_steps": (1, "sft"),
    "ppo.critic_optimizer.warmup_steps": (10**6, "ppo"),
    "reward.seq_len": (9, "reward"),
    "sft.loop.batch_size": (12, "sft"),
    "reward.loop.batch_size": (12, "reward"),
    "dpo.loop.batch_size": (12, "dpo"),
    "model.num_kv_heads": (99, "tokenizer"),
    "mixture.domain_max_epochs": ({"books": 2.0}, "tokenizer"),
    # Out of range by themselves.
    "tokenizer.vocab_size": (3, "tokenizer"),
    "mixture.alpha": (-1.0, "tokenizer"),
    "pretrain.loop.batch_size": (0, "tokenizer"),
    "model.moe.top_k": (-1, "tokenizer"),
    "mesh.data": (0, "curate"),
    "eval.batch_size": (0, "curate"),
    "instruct.num_train": (-1, "sft"),
    "reward.pairs.num_prompts": (-1, "reward"),
    "dpo.beta": (-1.0, "dpo"),
    "ppo.loop.batch_size": (7, "ppo"),
}


@pytest.mark.parametrize("key", CLASHES)
def test_only_sections_of_named_stages_are_checked(key):
    """Every number of stages from curation on: what clashes counts once its stage is named."""
    value, user = CLASHES[key]
    for count in range(1, len(tuple(STAGES))):
        stages = tuple(STAGES)[:count]
        config = change(change(nested(), key, value), "stages", stages)
        try:
            parsed = settings.parse(config)
            if "pretrain" in stages:
                settings.fit_mesh(parsed)
            refused = False
        except BadInput as error:
            refused = key.split(".")[0] in str(error)
        assert refused == (user in stages), stages


def test_a_pod_pretrains_a_family_without_overrides_for_other_stages():
    """64 devices by arithmetic: the rows of sections that nobody runs do not matter."""
    config = families.get_config("llama3.1-8b").to_dict()
    config = change(config, "pretrain.loop.batch_size", 64)
    parsed = settings.parse(change(config, "mesh.fsdp", 64))
    settings._check_rows(parsed, parsed.model, parsed.mesh.axis_sizes())


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (("curate", "tokenizer", "pretrain"), "256 long; model.max_positions is 80"),
        (("curate", "tokenizer"), None),
    ],
)
def test_rows_longer_than_learned_positions_are_refused(stages, words):
    config = change(nested(), "mesh", nested()["mesh"] | dict(data=8))
    config = change(config, "stages", stages)
    config = change(config, "model.positions", "learned")
    parsed = settings.parse(change(config, "model.max_positions", 80))
    if words is None:
        settings.fit_mesh(parsed)
    else:
        with pytest.raises(BadInput, match=words):
            settings.fit_mesh(parsed)


@pytest.mark.parametrize("gates", [("contamination",), ("length", "contamination"), ("length",)])
def test_evaluation_sets_need_the_gate_that_reads_them(gates):
    config = change(nested(), "eval.sets", "sets/*.jsonl")
    why = refusal(change(config, "data.sources.code.gates", gates))
    wanted = "" if "contamination" in gates else "eval.sets is 'sets/*.jsonl', but no source has"
    assert why.startswith(wanted) and bool(why) == bool(wanted)
    assert refusal(change(config, "data.sources", "a folder")) == "", "every gate applies to a path"


def test_mesh_axis_below_one_is_refused_at_the_config():
    with pytest.raises(BadInput, match="mesh.tensor is 0; it must be at least 1, or -1 for"):
        shrunk(tensor=0)
    with pytest.raises(
        BadInput, match="mesh: more than one axis is -1: data, tensor; allowed: one"
    ):
        shrunk(tensor=-1)
    with pytest.raises(BadInput, match="mesh.slices.data is -1; it must be at least 1, of an axis"):
        shrunk(slices=nested()["mesh"]["slices"] | dict(data=-1))


@pytest.mark.parametrize(
    ("rows", "path", "expected"),
    [
        (0, "", 777),
        (777, "", 777),
        (5000, "", 5000),
        (776, "", "model.vocab_size is 776; it must be 0 or at least the tokenizer's 777"),
        (776, "DIR", 776),  # its number of ids is known when it is read
        (-1, "", "model.vocab_size is -1; it must be"),
    ],
)
def test_embedding_has_the_tokenizers_rows_or_more(rows, path, expected):
    config = change(nested(), "tokenizer.vocab_size", 777)
    config = change(change(config, "tokenizer.path", path), "model.vocab_size", rows)
    why = refusal(config)
    if why:
        assert str(expected) in why
    else:
        assert settings.parse(config).model.vocab_size == expected
