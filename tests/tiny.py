"""Small things that many tests share: models, and configurations with every key."""

import dataclasses
from typing import Any

import jax

from model.config import Layout, TransformerConfig
from model.transformer import Params, init

LAYOUT_KEYS = frozenset(field.name for field in dataclasses.fields(Layout))


def replace(config: TransformerConfig, **changes: Any) -> TransformerConfig:
    """`config` with other keys, those of its layout among them."""
    layout = {key: changes.pop(key) for key in changes.keys() & LAYOUT_KEYS}
    return dataclasses.replace(
        config, layout=dataclasses.replace(config.layout, **layout), **changes
    )


def make_params(config: TransformerConfig, seed: int = 0) -> Params:
    """Fresh parameters on one device."""
    return init(config, jax.random.key(seed))


def whole_config(config: Any = None) -> dict:
    """Every key of a configuration, by default the quickstart with all stages, as a nested dict."""
    from configs import quickstart
    from launch import schema, settings
    from launch.stages.stage import STAGES

    if config is None:
        config = quickstart.get_config()
        config.stages = tuple(STAGES)
    return schema.to_dict(settings.parse(config))
