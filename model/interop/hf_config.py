"""config.json of a Hugging Face model to a TransformerConfig, and back.

A key that changes the maths is honoured, or refused by name and value. `to_hf` reads back what it
wrote: where that is another model, the family lacks a switch, and the error names it.
"""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from model.config import BIASES, MLAConfig, MoEConfig, RopeConfig, TransformerConfig, layer_kinds
from model.interop import hf_rope
from model.interop.hf_families import MODEL_TYPES, NEUTRAL, PACKED, Family
from model.interop.hf_keys import Keys, choose, text_part

SECTIONS = {"rope": RopeConfig, "mla": MLAConfig, "moe": MoEConfig}
KINDS = {"full_attention": "full", "sliding_attention": "sliding"}
# Switches that may be null: 0, or a size that follows from others.
NULLS = ("mla.query_rank", "attention_softcap", "logit_softcap")
DERIVED = ("num_kv_heads", "head_dim", "d_ff")
# How a model is computed and trained is no matter of config.json; any family has these fields.
COMPUTED = ("vocab_multiple", "dtype", "quantized", "layout")
TRAINED = ("bias_rate", "aux_loss", "z_loss", "dispatch", "capacity_factor")

# Beyond any model, and below what takes long to look at.
MAX_LAYERS = MAX_EXPERTS = 10_000
MAX_DIM, MAX_TOKENS = 1 << 20, 1 << 24
LIMITS = {
    "num_layers": MAX_LAYERS,
    "moe.num_experts": MAX_EXPERTS,
    "vocab_size": MAX_TOKENS,
    "max_positions": MAX_TOKENS,
}
Flat = dict[str, Any]


def from_hf(raw: Mapping[str, Any]) -> TransformerConfig:
    """The TransformerConfig of a config.json; of a multimodal Gemma 3, that of its text part.

    Raises:
      ValueError: an unknown architecture, or a key or value that cannot be honoured.
    """
    raw, name = text_part(raw)
    family = MODEL_TYPES[name]
    keys, flat = Keys(raw, family), dict(family.fixed)
    for switch, key in family.keys.items():
        value = keys.read(key) if switch in (*NULLS, *DERIVED) else keys.need(key)
        flat[switch] = _typed(switch, key, value)
    _derive_sizes(name, family, keys, flat)
    flat["head"] = "tied" if keys.read("tie_word_embeddings") else "untied"
    if family.act:
        flat["mlp"] = choose(family.act, keys.read(family.act), family.acts)
    parts = {part for key, parts in family.biases.items() if keys.read(key) for part in parts}
    parts |= set(flat.get("bias", ()))
    flat["bias"] = tuple(part for part in BIASES if part in parts)
    flat["layers"], flat["window"] = _read_layers(name, family, keys, flat["num_layers"])
    if flat.get("positions") != "learned":
        flat |= hf_rope.read(keys, nested=name == "gemma3_text")
    flat["attention_scale"] = _read_scale(name, keys, flat)
    _read_experts(name, keys, flat)
    _check_rest(name, raw, keys.seen)
    try:
        return _build(flat)
    except ValueError as error:
        raise ValueError(f"config.json: {error}") from error


def _typed(switch: str, key: str, value: Any) -> Any:
    """The value in the type of our field."""
    section, _, field = switch.rpartition(".")
    kind = typing.get_type_hints(SECTIONS.get(section, TransformerConfig))[field]
    if value is None:
        return None if switch in DERIVED else kind()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        key = key.split("|")[0]
        raise ValueError(f"config.json: {key} is {value!r}; it must be of type {kind.__name__}")
    most = LIMITS.get(switch, MAX_DIM)
    if kind is int and value > most:
        key = key.split("|")[0]
        raise ValueError(f"config.json: {key} is {value!r}; it must be at most {most}")
    return value


def _derive_sizes(name: str, family: Family, keys: Keys, flat: Flat) -> None:
    width, heads = flat["d_model"], flat["num_heads"]
    if not 1 <= flat["num_layers"] <= MAX_LAYERS:
        allowed = f"1 to {MAX_LAYERS}"
        raise ValueError(
            f"config.json: model.num_layers is {flat['num_layers']}; it must be {allowed}"
        )
    if heads < 1 or (family.whole and width % heads):
        allowed = f"a divisor of the hidden size, {width}"
        key = family.keys["num_heads"]
        raise ValueError(f"config.json: {key} is {heads}; it must be {allowed}")
    if name == "deepseek_v3":
        plain = keys.need("qk_nope_head_dim")
        if not 1 <= plain <= MAX_DIM or flat["mla.rope_dim"] < 1:
            allowed = f"1 to {MAX_DIM}"
            raise ValueError(f"config.json: qk_nope_head_dim is {plain}; it must be {allowed}")
        flat["head_dim"] = plain + flat["mla.rope_dim"]
    sizes = {"num_kv_heads": heads, "head_dim": width // heads, "d_ff": 4 * width}
    for switch, size in sizes.items():
        if flat.get(switch) is None:
            flat[switch] = size


def _read_layers(name: str, family: Family, keys: Keys, count: int) -> tuple[tuple[str, ...], int]:
    """The cycle of kinds of attention, and the window of those that slide."""
    if family.slides == "none":
        return ("full",), 0
    window = keys.read("sliding_window") or 0
    if name.startswith("qwen") and not keys.read("use_sliding_window"):
        window = 0
    if family.slides == "all":
        return (("sliding",), window) if window else (("full",), 0)
    listed = keys.read("layer_types")
    if listed is None:
        slides = _slides(name, keys, window)
        kinds = ["sliding" if slides(i) else "full" for i in range(count)]
    else:
        kinds = [choose("layer_types", kind, KINDS) for kind in listed]
    if len(kinds) != count:
        raise ValueError(f"config.json: layer_types has {len(kinds)} entries for {count} layers")
    return cycle(kinds), window if "sliding" in kinds else 0


def _slides(name: str, keys: Keys, window: int) -> Callable[[int], bool]:
    """Which layers slide where layer_types does not say it: the rule of the class."""
    if name.startswith("qwen"):
        first = keys.need("max_window_layers")
        if name == "qwen2_moe":
            return lambda i: bool(window) and i % 2 == 0 and i < first
        return lambda i: bool(window) and i >= first
    if name == "gemma3_text":
        every = keys.need("sliding_window_pattern")
        return lambda i: bool((i + 1) % every)
    return lambda i: i % 2 == 0


def cycle(kinds: list[str]) -> tuple[str, ...]:
    """The shortest run of kinds whose repetition gives them all; the last may be cut off."""
    periods = range(1, len(kinds) + 1)
    best = next(p for p in periods if all(kinds[i] == kinds[i % p] for i in range(len(kinds))))
    return tuple(kinds[:best])


def _read_scale(name: str, keys: Keys, flat: Flat) -> float:
    """TransformerConfig.attention_scale; takes 'stretch' out of the switches."""
    stretch = flat.pop("stretch", 1.0)
    if name == "gpt2":
        return 0.0 if keys.read("scale_attn_weights", True) else 1.0
    if name in ("gemma2", "gemma3_text"):
        return keys.need("query_pre_attn_scalar") ** -0.5
    return flat["head_dim"] ** -0.5 * stretch**2 if name == "deepseek_v3" else 0.0


def _read_experts(name: str, keys: Keys, flat: Flat) -> None:
    """What keys of one family alone say of the experts."""
    if name == "deepseek_v3":
        flat["moe.shared_d_ff"] = keys.need("n_shared_experts") * flat["moe.d_ff"]
    if name not in ("qwen2_moe", "qwen3_moe"):
        return
    step, dense = keys.read("decoder_sparse_step") or 1, keys.read("mlp_only_layers") or []
    sparse = [i for i in range(flat["num_layers"]) if (i + 1) % step == 0]
    without = [i for i in sparse if i in dense]
    if without != sparse[: len(without)]:
        raise ValueError(
            f"config.json: mlp_only_layers is {dense}; of the layers with experts, {sparse}, "
            "it may name only the first"
        )
    flat["moe.every"], flat["moe.num_dense"] = step, without[-1] + 1 if without else 0


def _check_rest(name: str, raw: Mapping[str, Any], seen: set[str]) -> None:
    """Raises ValueError if a key that was not honoured changes the maths."""
    must = MODEL_TYPES[name].must
    for key, value in raw.items():
        if key == "quantization_config" and isinstance(value, Mapping):
            value = value.get("quant_method")
            if value == PACKED.get(name):
                continue
        allowed = must.get(key, NEUTRAL.get(key) if key not in seen else None)
        if allowed is not None and value not in (None, *allowed):
            choice = f"one of {(None, *allowed)}" if allowed else "null"
            raise ValueError(f"config.json: {key} is {value!r}; of {name} only {choice} is read")
    listed = raw.get("layer_types")
    if listed and "layer_types" not in seen and any(kind != listed[0] for kind in listed):
        raise ValueError(f"config.json: layer_types is {listed}; {name} has layers of one kind")


def _build(flat: Flat) -> TransformerConfig:
    sections: dict[str, dict] = {section: {} for section in SECTIONS}
    top = {}
    for switch, value in flat.items():
        section, _, field = switch.rpartition(".")
        (sections[section] if section else top)[field] = value
    parts = {section: cls(**sections[section]) for section, cls in SECTIONS.items()}
    return TransformerConfig(**top, **parts)


def flatten(config: TransformerConfig) -> Flat:
    """Every switch by its dotted name."""
    flat = {}
    for key, value in dataclasses.asdict(config).items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if key in SECTIONS else {key: value}
    return flat


def to_hf(config: TransformerConfig, name: str) -> dict[str, Any]:
    """The config.json of a model, as a family of transformers.

    Args:
      config: the model.
      name: a model_type; `nearest` finds one.

    Raises:
      ValueError: the family is unknown, or has no such model; the message names the switches.
    """
    if name not in MODEL_TYPES:
        raise ValueError(f"model_type is {name!r}; it must be one of {', '.join(MODEL_TYPES)}")
    try:
        written, clashes = _write(config, name)
    except ValueError as error:
        clashes = [str(error).removeprefix("config.json: ")]
    if clashes:
        raise ValueError(f"{name} has no such model: {'; '.join(clashes)}")
    return written


def nearest(config: TransformerConfig) -> str:
    """The first model_type of the table that has this model.

    Raises:
      ValueError: none has; the message names the switches that part it from the nearest.
    """
    clashes: dict[str, list[str]] = {}
    for name in MODEL_TYPES:
        with contextlib.suppress(ValueError):  # sizes that the family cannot have at all
            clashes[name] = _write(config, name)[1]
    best = min(clashes, key=lambda name: len(clashes[name]), default="")
    if best and not clashes[best]:
        return best
    why = f"; the nearest is {best}: {'; '.join(clashes[best])}" if best else ""
    raise ValueError(f"no family of transformers has this model{why}")


def _write(config: TransformerConfig, name: str) -> tuple[dict[str, Any], list[str]]:
    """(config.json, the switches that it does not say).

    Raises:
      ValueError: it cannot even be read back.
    """
    family, flat = MODEL_TYPES[name], flatten(config)
    out = {"architectures": [family.model_class], "model_type": name, "dtype": "float32"}
    for switch, key in family.keys.items():
        null = switch in NULLS and not flat[switch]
        out[key.split("|")[0]] = None if null else flat[switch]
    if not config.max_positions:
        out.pop(family.keys["max_positions"])
    out["tie_word_embeddings"] = config.head == "tied"
    if family.act:
        names = [key for key, mlp in family.acts.items() if mlp == config.mlp]
        out[family.act] = (names or list(family.acts))[0]
    for key, parts in family.biases.items():
        out[key] = set(parts) <= set(config.bias)
    out |= _write_layers(config, name, family) | _write_scale(config, name)
    if config.positions == "rope":
        out |= hf_rope.write(config, name)
    if name in ("qwen2_moe", "qwen3_moe"):
        dense = list(range(config.moe.num_dense))
        out |= {"decoder_sparse_step": config.moe.every, "mlp_only_layers": dense}
    if name == "deepseek_v3":
        out["n_shared_experts"] = config.moe.shared_d_ff // max(config.moe.d_ff, 1)
        out["qk_nope_head_dim"] = config.head_dim - config.mla.rope_dim
        out["num_nextn_predict_layers"] = 0
    written, meant = _plain(from_hf(out)), _plain(config)
    return out, [
        f"model.{switch} is {meant[switch]!r}, {name} can express {written[switch]!r}"
        for switch in meant
        if not _same(meant[switch], written[switch])
    ]


def _write_layers(config: TransformerConfig, name: str, family: Family) -> dict[str, Any]:
    if family.slides == "none":
        return {}
    slides = [kind.sliding for kind in layer_kinds(config)]
    out: dict[str, Any] = {"sliding_window": config.window if any(slides) else None}
    if name.startswith("qwen"):
        out["use_sliding_window"] = any(slides)
    if family.slides == "listed":
        spelled = {kind: long for long, kind in KINDS.items()}
        out["layer_types"] = [spelled["sliding" if slid else "full"] for slid in slides]
    return out


def _write_scale(config: TransformerConfig, name: str) -> dict[str, Any]:
    scale = config.attention_scale or config.head_dim**-0.5
    if name == "gpt2":
        return {"scale_attn_weights": scale != 1.0}
    if name in ("gemma2", "gemma3_text"):
        return {"query_pre_attn_scalar": round(scale**-2)}
    return {}


def _plain(config: TransformerConfig) -> Flat:
    """The switches that make a difference to the maths, in one spelling."""
    kinds, rope, moe = layer_kinds(config), config.rope, config.moe
    slides = ["sliding" if kind.sliding else "full" for kind in kinds]
    window = config.window if "sliding" in slides else 0
    local = rope.local_theta if "sliding" in slides else 0.0
    if rope.scaling == "none":
        rope = RopeConfig(rope.theta, 0.0 if local == rope.theta else local)
    elif rope.scaling == "linear":
        rope = RopeConfig(rope.theta, local, "linear", rope.factor, magnitude=rope.magnitude)
    else:
        truncate = rope.truncate or rope.scaling == "llama3"
        rope = dataclasses.replace(rope, local_theta=local, truncate=truncate)
    if config.positions == "learned":
        rope = RopeConfig()
    plain = dataclasses.replace(
        config,
        layers=cycle(slides),
        window=window,
        rope=rope,
        bias=tuple(part for part in BIASES if part in config.bias),
        attention_scale=config.attention_scale or config.head_dim**-0.5,
        max_positions=config.max_positions if config.positions == "learned" else 0,
        d_ff=config.d_ff if not all(kind.experts for kind in kinds) else moe.d_ff,
        mla=config.mla if config.mla.kv_rank else MLAConfig(),
        moe=_plain_experts(config) if moe.num_experts else MoEConfig(),
    )
    return {key: value for key, value in flatten(plain).items() if key not in COMPUTED}


def _plain_experts(config: TransformerConfig) -> MoEConfig:
    moe, unset = config.moe, MoEConfig()
    step = range(moe.every - 1, config.num_layers, moe.every)
    below = [i for i in step if i < moe.num_dense]
    trained = {key: getattr(unset, key) for key in TRAINED}
    return dataclasses.replace(moe, num_dense=below[-1] + 1 if below else 0, **trained)


def _same(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) else a == b
