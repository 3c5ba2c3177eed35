"""Import and export against transformers: frozen logits everywhere, transformers itself if present.

tests/hf_logits.json holds, for tiny models of every family, config.json and what transformers
5.23.0 (torch 2.13.0, CPU, float32, eager attention and experts) says given the weights of `draw`:
logits of words 0 .. 7 after tokens 1, 11 and 23 of `TOKENS`, and the first greedy tokens of its
`generate` with their log-probabilities.
"""

import dataclasses
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import decode, sharding
from model.config import Layout
from model.interop import hf_config, hf_keys, hf_tensors, huggingface, placement
from model.interop.mapping import parts
from model.transformer import declare, forward, init
from tests.marks import by_default
from tests.tiny import replace

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASES = json.loads((Path(__file__).parent / "hf_logits.json").read_text())
ATOL = 1e-4  # float32 logits of several units, sums taken in another order
LAST_BIT = 1.2e-7  # of a scale around 1, kept less 1
PLACES = [1, 11, 23]
# One of each mechanism; the others are slow.
BY_DEFAULT = (
    "gpt2",
    "llama 3.1",
    "mixtral",
    "qwen2",
    "qwen3 moe",
    "gemma3",
    "olmo2",
    "deepseek v3",
    "gpt-oss",
)
SOME = [pytest.param(case, marks=() if case in BY_DEFAULT else pytest.mark.slow) for case in CASES]
LIVE = "needs torch and transformers, which nothing else does"

run = jax.jit(forward, static_argnums=0)


def draw(name, shape, around=1.0):
    """A tensor's values, from its name alone; RandomState's stream is fixed for good."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return np.float32(around + 0.2 * x if "norm" in name or ".ln_" in name else 0.3 * x)


def tokens(vocab_size):
    return np.random.RandomState(0).randint(0, vocab_size, (2, 24))


def same(one, other, atol=0.0):
    """Holds two models' parameters against each other."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 0, atol), one, other)


def expected_tensors(raw):
    """Names and shapes as the Hub has them, from our own rules."""
    config, (text, name) = hf_config.from_hf(raw), hf_keys.text_part(raw)
    base = "language_model.model." if raw["model_type"] == "gemma3" else huggingface.base(name)
    rules = hf_tensors.rules(name, pairs=text.get("rope_interleave", True))
    return {
        part.name.replace(huggingface.base(name), base, 1): part.shape
        for part in parts(config, rules, huggingface.layer(name))
    }


def write(directory, raw, tensors=None):
    """A Hugging Face directory with drawn weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    around = 0.0 if "gemma" in raw["model_type"] else 1.0  # Gemma stores scales less 1
    if tensors is None:
        tensors = {n: draw(n, shape, around) for n, shape in expected_tensors(raw).items()}
    save_file(tensors, directory / "model.safetensors")
    return tensors


@pytest.mark.parametrize("case", SOME)
def test_logits_are_those_of_transformers(case, tmp_path):
    write(tmp_path, CASES[case]["config"])
    config, params = huggingface.load(tmp_path, vocab_multiple=16)
    logits = run(config, params, tokens(config.vocab_size))
    assert logits.shape == (2, 24, config.vocab_size)
    np.testing.assert_allclose(logits[0, PLACES, :8], CASES[case]["logits"], 0, ATOL)


@pytest.mark.parametrize("case", by_default(["gemma2", "deepseek v3", "gpt-oss", "gpt2"], 0, 3))
def test_greedy_tokens_are_those_of_transformers(case, tmp_path):
    write(tmp_path, CASES[case]["config"])
    config, params = huggingface.load(tmp_path)
    ids = tokens(config.vocab_size)[:1]
    greedy = dict(max_new_tokens=12, temperature=0.0, end_id=-1, pad_id=0)
    got = decode.generate(config, params, ids, np.ones_like(ids), jax.random.key(0), **greedy)
    assert got.tokens_BR[0].tolist() == CASES[case]["greedy"]
    np.testing.assert_allclose(got.logprobs_BR[0], CASES[case]["logprobs"], 0, ATOL)


@pytest.mark.parametrize("case", SOME)
def test_export_gives_the_file_back(case, tmp_path):
    raw = CASES[case]["config"]
    base = huggingface.base(hf_keys.text_part(raw)[1])
    stored = {
        name.replace("language_model.model.", base): value
        for name, value in write(tmp_path / "in", raw).items()
    }
    config, params = huggingface.load(tmp_path / "in", vocab_multiple=16)
    name = hf_config.nearest(config)
    huggingface.save(tmp_path / "out", config, params, name)
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == stored.keys()
    if raw.get("rope_interleave", True):  # halves are written as pairs
        for key in stored:
            np.testing.assert_allclose(back[key], stored[key], 0, LAST_BIT * ("gemma" in name))
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["model_type"] == name
    again, loaded = huggingface.load(tmp_path / "out", vocab_multiple=16)
    assert again == config
    same(loaded, params)


def test_export_splits_long_files(tmp_path):
    write(tmp_path / "in", CASES["mixtral"]["config"])
    config, params = huggingface.load(tmp_path / "in")
    huggingface.save(tmp_path / "out", config, params, "mixtral", max_shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 5
    same(huggingface.load(tmp_path / "out")[1], params)


@pytest.mark.parametrize(
    ("case", "axes"),
    [
        ("llama 2", dict(fsdp=2, stage=2, context=2)),
        ("mixtral", dict(expert=4, stage=2)),
        ("deepseek v3", dict(expert=2, fsdp=4)),
        ("gpt-oss plain rope", dict(tensor=1, stage=3)),
        ("llama 3.1", dict(tensor=2, data=2)),
    ],
)
def test_any_mesh_holds_the_same_model(case, axes, tmp_path):
    write(tmp_path / "in", CASES[case]["config"])
    config, params = huggingface.load(tmp_path / "in", vocab_multiple=24)
    count = int(np.prod(list(axes.values())))
    mesh = sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices()[:count])
    _, placed = huggingface.load(tmp_path / "in", mesh, vocab_multiple=24)
    want = sharding.weight_shardings(declare(config), mesh)
    jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim) or 1 / 0, placed, want)
    same(placed, params)
    huggingface.save(tmp_path / "out", config, placed, hf_config.nearest(config))
    back = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in load_file(tmp_path / "in" / "model.safetensors").items():
        np.testing.assert_array_equal(back[name], value, name)


def test_no_more_than_a_slice_travels(tmp_path):
    """Filling a leaf that is split along X or E must not gather it."""
    mesh = sharding.make_mesh(sharding.MeshConfig(expert=4, stage=2))
    spec = jax.sharding.PartitionSpec("stage", "expert", None)
    place = jax.sharding.NamedSharding(mesh, spec)
    leaf = jax.ShapeDtypeStruct((4, 8, 64), np.float32, sharding=place)
    index = jax.ShapeDtypeStruct((2,), np.int32)
    value = jax.ShapeDtypeStruct((64,), np.float32)
    text = placement._writer(place, 2).lower(leaf, value, index).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text
    assert "f32[2,2,64]" in text


def test_fused_experts_are_read(tmp_path):
    for case in ("mixtral", "qwen3 moe"):
        raw = CASES[case]["config"]
        tensors = write(tmp_path / "each", raw)
        names = ("w1", "w3", "w2") if case == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        fused, left = {}, {}
        for name, value in tensors.items():
            layer, found, rest = name.partition(".experts.")
            layer = layer.replace("block_sparse_moe", "mlp")
            if found:
                expert, which, _ = rest.split(".")
                fused.setdefault((layer, names.index(which)), {})[int(expert)] = value
            else:
                left[name.replace("block_sparse_moe", "mlp")] = value
        stacked = {key: np.stack([x[e] for e in sorted(x)]) for key, x in fused.items()}
        for layer in {key[0] for key in stacked}:
            both = np.concatenate([stacked[layer, 0], stacked[layer, 1]], 1)
            left[f"{layer}.experts.gate_up_proj"] = both
            left[f"{layer}.experts.down_proj"] = stacked[layer, 2]
        write(tmp_path / "fused", raw, left)
        each, together = (
            huggingface.load(tmp_path / "each")[1],
            huggingface.load(tmp_path / "fused")[1],
        )
        same(each, together)


def test_what_says_nothing_is_ignored(tmp_path):
    raw = CASES["deepseek v3"]["config"]
    tensors = write(tmp_path / "in", raw)
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
        "model.layers.3.eh_proj.weight": np.ones((2, 2), np.float32),  # predicts a second token
    }
    write(tmp_path / "in", raw, tensors | more)
    huggingface.load(tmp_path / "in")
    raw = CASES["gpt2"]["config"]
    tensors = {n.removeprefix("transformer."): x for n, x in write(tmp_path / "gpt2", raw).items()}
    more = {"h.0.attn.bias": np.ones((1, 1), np.float32), "lm_head.weight": tensors["wte.weight"]}
    write(tmp_path / "gpt2", raw, tensors | more)
    huggingface.load(tmp_path / "gpt2")
    write(tmp_path / "gpt2", raw, tensors | {"lm_head.weight": tensors["wte.weight"] + 1})
    with pytest.raises(ValueError, match="lm_head.weight is not the embedding"):
        huggingface.load(tmp_path / "gpt2")


def test_faults_of_a_file_are_named(tmp_path):
    raw = CASES["llama 2"]["config"]
    sound, q = write(tmp_path, raw), "model.layers.1.self_attn.q_proj.weight"

    def refusal(tensors):
        write(tmp_path, raw, tensors)
        with pytest.raises(ValueError) as caught:
            huggingface.load(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    without = {name: value for name, value in sound.items() if name != q}
    assert f"lacks {q}" in refusal(without)
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert f"has no use for {bias}" in refusal(sound | {bias: np.ones(24, np.float32)})
    assert "has no use for foo.weight" in refusal(sound | {"foo.weight": np.ones(3, np.float32)})
    short = q.removeprefix("model.")
    message = refusal(without | {short: np.ones((24, 23), np.float32)})
    assert f"has another shape for {short} ((24, 23)" in message, "as it stands in the file"
    message = refusal(sound | {q: np.ones((24, 23), np.float32)})
    assert f"has another shape for {q} ((24, 23), expected (24, 24))" in message
    few = {name: value for name, value in sound.items() if "layers.1" not in name}
    assert "and 4 more" in refusal(few)
    twice = refusal(sound | {q.removeprefix("model."): sound[q]})
    assert "two spellings" in twice
    past = {"model.layers.2.mlp.up_proj.weight": np.ones((40, 24), np.float32)}
    assert "has no use for model.layers.2" in refusal(sound | past)


def test_a_model_of_ones_own_can_be_exported(tmp_path):
    config, _ = (hf_config.from_hf(CASES["qwen3"]["config"]), None)
    config = replace(config, vocab_multiple=64, scan_layers=False, max_positions=0)
    params = init(config, jax.random.key(0))
    huggingface.save(tmp_path, config, params, hf_config.nearest(config))
    again, loaded = huggingface.load(tmp_path, vocab_multiple=64, layout=Layout(scan_layers=False))
    assert dataclasses.replace(again, max_positions=0) == config
    loaded["embedding"] = (
        loaded["embedding"].at[config.vocab_size :].set(params["embedding"][config.vocab_size :])
    )
    same(loaded, params)


# ------------------------------------------------------------ transformers itself


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_live(case, tmp_path):
    """Their directory here, ours there: logits, greedy tokens through both caches."""
    torch = pytest.importorskip("torch", reason=LIVE)
    transformers = pytest.importorskip("transformers", reason=LIVE)
    torch.set_num_threads(1)
    raw = CASES[case]["config"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps(raw))
    shape = transformers.AutoConfig.from_pretrained(tmp_path / "in")
    vision = raw["model_type"] == "gemma3"
    auto = transformers.AutoModelForCausalLM
    cls = transformers.Gemma3ForConditionalGeneration if vision else auto
    new = cls._from_config if vision else cls.from_config
    new(shape).float().save_pretrained(tmp_path / "in")
    shapes = {n: x.shape for n, x in load_file(tmp_path / "in" / "model.safetensors").items()}
    around = 0.0 if "gemma" in raw["model_type"] else 1.0
    drawn = {name: draw(name, shape, around) for name, shape in shapes.items()}
    save_file(drawn, tmp_path / "in" / "model.safetensors", {"format": "pt"})

    def reload(directory, cls):
        theirs, report = cls.from_pretrained(
            directory,
            attn_implementation="eager",
            experts_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
        assert not any(report.values()), report
        return theirs.eval()

    config, params = huggingface.load(tmp_path / "in", vocab_multiple=16)
    ids = tokens(config.vocab_size)
    theirs = reload(tmp_path / "in", cls)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
        written = theirs.generate(
            torch.tensor(ids),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            **dict(max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0),
        )[:, 24:]
    np.testing.assert_allclose(run(config, params, ids), expected, 0, ATOL)
    np.testing.assert_allclose(expected[0][PLACES, :8], CASES[case]["logits"], 0, ATOL)
    greedy = dict(max_new_tokens=64, temperature=0.0, end_id=-1, pad_id=0)
    got = decode.generate(config, params, ids, np.ones_like(ids), jax.random.key(0), **greedy)
    assert got.tokens_BR.tolist() == written.tolist()
    huggingface.save(tmp_path / "out", config, params, hf_config.nearest(config))
    with torch.no_grad():
        again = reload(tmp_path / "out", auto)(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(again, expected, 0, ATOL)
