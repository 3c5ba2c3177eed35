"""The keys of a config.json: which family they are of, whether they are what they must be."""

from collections.abc import Mapping
from typing import Any

from model.interop.hf_families import MODEL_TYPES, Family

# What a class of transformers takes where a file says nothing; rows of the table say the rest.
DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 0}
# What a key must be where it is neither null nor one of a family's table.
TYPES = {
    **dict.fromkeys(("model_type", "hidden_act", "hidden_activation", "activation_function"), str),
    **dict.fromkeys(("architectures", "layer_types", "mlp_only_layers"), list),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "text_config"), dict),
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window", "scale_attn_weights"), bool),
    **dict.fromkeys(("attention_bias", "mlp_bias", "qkv_bias", "rope_interleave"), bool),
    **dict.fromkeys(("sliding_window", "max_window_layers", "qk_nope_head_dim"), int),
    **dict.fromkeys(("n_shared_experts", "num_nextn_predict_layers", "num_mtp_layers"), int),
    **dict.fromkeys(("sliding_window_pattern", "decoder_sparse_step"), int),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "query_pre_attn_scalar"), float),
}
POSITIVE = ("sliding_window_pattern", "decoder_sparse_step", "query_pre_attn_scalar")


class Keys:
    """The keys of a config.json, with a family's defaults; it remembers those that were read."""

    def __init__(self, raw: Mapping[str, Any], family: Family):
        self._raw, self.seen = raw, set()
        self._defaults = DEFAULTS | dict(family.defaults)

    def read(self, key: str, default: Any = None) -> Any:
        """A key's value; of 'a|b' that of the first that is there."""
        names = key.split("|")
        self.seen.update(names)
        given = [self._raw[name] for name in names if name in self._raw]
        return given[0] if given else self._defaults.get(names[0], default)

    def need(self, key: str) -> Any:
        """A key's value.

        Raises:
          ValueError: the file lacks it.
        """
        value = self.read(key)
        if value is None:
            raise ValueError(f"config.json lacks {key.split('|')[0]}")
        return value


def text_part(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """(the keys of the language model, its row in the table).

    Raises:
      ValueError: an unknown architecture.
    """
    _check_types(raw)
    name, classes = raw.get("model_type"), raw.get("architectures") or []
    if name == "gemma3" and raw.get("text_config"):
        tied, raw = raw.get("tie_word_embeddings", True), raw["text_config"]
        _check_types(raw)
        return {**raw, "tie_word_embeddings": tied}, "gemma3_text"
    if name not in MODEL_TYPES:
        known = ", ".join([*MODEL_TYPES, "gemma3 with a text_config"])
        raise ValueError(f"config.json: model_type is {name!r}; it must be one of {known}")
    if classes and MODEL_TYPES[name].model_class not in classes:
        wanted = MODEL_TYPES[name].model_class
        raise ValueError(f"config.json: architectures is {classes}; it must hold {wanted!r}")
    return raw, name


def _check_types(raw: Mapping[str, Any]) -> None:
    for key, value in raw.items():
        kind = TYPES.get(key, object)
        kinds = (int, float) if kind is float else kind
        fits = isinstance(value, kinds) and (kind in (bool, object) or not isinstance(value, bool))
        if value is not None and not fits:
            raise ValueError(f"config.json: {key} is {value!r}; it must be of type {kind.__name__}")
        if key in POSITIVE and value is not None and not value > 0:
            raise ValueError(f"config.json: {key} is {value!r}; it must be above 0")


def choose(key: str, value: Any, allowed: Mapping[str, Any]) -> Any:
    """What a table says of a key's value.

    Raises:
      ValueError: the value is not in the table.
    """
    if value not in tuple(allowed):
        raise ValueError(f"config.json: {key} is {value!r}; it must be one of {tuple(allowed)}")
    return allowed[value]
