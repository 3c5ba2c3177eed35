"""Rotary positions as config.json says them, old spelling and new, and back."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from model.config import RopeConfig, TransformerConfig
from model.interop.hf_keys import Keys

FULL, SLIDING = "full_attention", "sliding_attention"
WORDS, SWITCHES = {"type", "rope_type"}, {"truncate"}
# The numbers that each type reads. transformers warns of any other key, and ignores it.
ANY = {"rope_theta", "partial_rotary_factor"}
STRETCHED = ANY | {"factor", "mscale_all_dim"}
TRAINED = STRETCHED | {"original_max_position_embeddings"}
# Names of RopeConfig's slow and fast.
SPEEDS = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
NUMBERS = {
    "default": ANY,
    "linear": STRETCHED,
    "llama3": TRAINED.union(SPEEDS["llama3"]),
    "yarn": TRAINED.union(SPEEDS["yarn"], ("attention_factor", "mscale")),
}


def read(keys: Keys, nested: bool) -> dict[str, Any]:
    """Switches of RopeConfig by their dotted names, and 'stretch', DeepSeek's factor of the scale.

    transformers 5 writes `rope_parameters`; before, `rope_theta` stood beside `rope_scaling`,
    which still goes first.

    Args:
      keys: of the file.
      nested: sliding layers have settings of their own (Gemma 3).

    Raises:
      ValueError: a kind or key that cannot be honoured.
    """
    theta, longest = keys.read("rope_theta", 10_000.0), keys.read("max_position_embeddings")
    old, new = keys.read("rope_scaling") or {}, keys.read("rope_parameters") or {}
    if not nested:
        return _settings({"rope_theta": theta, **(old or new)}, longest)
    if set(new) - {FULL, SLIDING} or not all(isinstance(x, dict | None) for x in new.values()):
        raise ValueError(
            f"config.json: rope_parameters is {new}; it must have {FULL} and {SLIDING}"
        )
    full = {"rope_theta": theta, **(new.get(FULL) or {}), **old}
    local_theta = keys.read("rope_local_base_freq")
    sliding = {"rope_theta": local_theta, **(new.get(SLIDING) or {})}
    found, local = _settings(full, longest), _settings(sliding, longest)
    if local == found:
        return found
    if local["rope.scaling"] != "none":
        raise ValueError(f"config.json: rope_parameters.{SLIDING} is {sliding}; only default is")
    return found | {"rope.local_theta": local["rope.theta"]}


def _settings(given: Mapping[str, Any], longest: int) -> dict[str, Any]:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in tuple(NUMBERS):
        raise ValueError(f"config.json: rope_type is {kind!r}; it must be one of {tuple(NUMBERS)}")
    _check_keys(given, kind)
    if given["rope_theta"] is None:
        raise ValueError("config.json lacks rope_theta")
    found = {"rope.theta": float(given["rope_theta"]), "rope.scaling": "none", "stretch": 1.0}
    if kind == "default":
        return found
    original = given.get("original_max_position_embeddings") or longest
    factor = given.get("factor") or (longest / original if kind == "yarn" and original else None)
    if factor is None:
        raise ValueError(f"config.json: RoPE of type {kind} lacks factor")
    found |= {"rope.scaling": kind, "rope.factor": float(factor)}
    all_dim = given.get("mscale_all_dim") or 0
    found["stretch"] = _mscale(factor, all_dim) if all_dim else 1.0
    if kind == "linear":
        return found
    found["rope.original_len"] = int(original)
    for key, name, usual in zip(SPEEDS[kind], ("slow", "fast"), (1.0, 32.0), strict=True):
        if kind == "llama3" and given.get(key) is None:
            raise ValueError(f"config.json: RoPE of type llama3 lacks {key}")
        found[f"rope.{name}"] = float(given.get(key) or usual)
    if kind == "yarn":
        found["rope.truncate"] = bool(given.get("truncate", True))
        found["rope.magnitude"] = _magnitude(given, factor)
    return found


def _check_keys(given: Mapping[str, Any], kind: str) -> None:
    for key, value in given.items():
        is_switch = key in SWITCHES and kind == "yarn"
        if key == "partial_rotary_factor" and value not in (1, None):
            raise ValueError(f"config.json: {key} of RoPE is {value!r}; it is not read")
        if key in NUMBERS[kind] and not _is_number(value):
            raise ValueError(f"config.json: {key} of RoPE is {value!r}; it must be a number")
        if is_switch and value not in (True, False, None):
            raise ValueError(f"config.json: {key} of RoPE is {value!r}; it must be true or false")
        if not is_switch and key not in WORDS | NUMBERS[kind]:
            logging.getLogger(__name__).warning(
                "config.json: %s of RoPE is ignored, as transformers does: type %s has no such key",
                *(key, kind),
            )


def _is_number(value: Any) -> bool:
    """Whether it is one, or null."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _mscale(factor: float, weight: float) -> float:
    """Source: arXiv 2309.00071, equation 22, with a weight as in the released code of DeepSeek."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _magnitude(given: Mapping[str, Any], factor: float) -> float:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    some, every = given.get("mscale"), given.get("mscale_all_dim")
    if some and every:
        return _mscale(factor, some) / _mscale(factor, every)
    return _mscale(factor, 1.0)


def write(config: TransformerConfig, name: str) -> dict[str, Any]:
    """The keys of config.json, in both spellings: older readers know nothing of the new one."""
    rope = config.rope
    fields = _say(rope)
    if name == "deepseek_v3":
        fields |= _say_mscale(config)
    full = {"rope_theta": rope.theta, **fields}
    old = {"rope_theta": rope.theta, "rope_scaling": fields if rope.scaling != "none" else None}
    if name != "gemma3_text":
        return {**old, "rope_parameters": full}
    local_theta = rope.local_theta or rope.theta
    local = {"rope_theta": local_theta, "rope_type": "default"}
    if not rope.local_theta:
        local = full
    nested = {FULL: full, SLIDING: local}
    return {**old, "rope_local_base_freq": local_theta, "rope_parameters": nested}


def _say(rope: RopeConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"rope_type": "default" if rope.scaling == "none" else rope.scaling}
    if rope.scaling != "none":
        fields["factor"] = rope.factor
    if rope.scaling in SPEEDS:
        fields |= zip(SPEEDS[rope.scaling], (rope.slow, rope.fast), strict=True)
        fields["original_max_position_embeddings"] = rope.original_len
    if rope.scaling == "yarn":
        fields |= {"attention_factor": rope.magnitude, "truncate": rope.truncate}
    return fields


def _say_mscale(config: TransformerConfig) -> dict[str, Any]:
    """mscale and mscale_all_dim from the scale of the scores and the magnitude."""
    rope = config.rope
    if rope.scaling == "none" or rope.factor <= 1 or not config.attention_scale:
        return {}
    slope = 0.1 * math.log(rope.factor)
    stretch = math.sqrt(config.attention_scale * math.sqrt(config.head_dim))
    return {
        "mscale": (rope.magnitude * stretch - 1) / slope,
        "mscale_all_dim": (stretch - 1) / slope,
    }
