"""Keys of the sections that all training stages share: messages name the key that was given."""

import math

import pytest

from configs import quickstart
from data.errors import BadInput
from launch import settings


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"optimizer.kind": "lion"}, "optimizer.kind is 'lion'"),
        ({"grpo.optimizer.kind": "lion"}, "grpo.optimizer.kind is 'lion'"),
        ({"optimizer.beta2": math.nan, "sft.optimizer.beta2": 0.9}, "optimizer.beta2 is nan"),
        ({"optimizer.beta2": 0.9, "sft.optimizer.beta2": math.nan}, "sft.optimizer.beta2 is nan"),
        ({"rollout.temperature": 0.0}, "rollout.temperature is 0.0"),
    ],
)
def test_a_message_names_the_key_that_was_given(given, key):
    config = quickstart.get_config().to_dict()
    config["stages"] = ("curate", "tokenizer", "pretrain", "sft", "reward", "ppo", "grpo")
    for path, value in given.items():
        *parents, name = path.split(".")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    with pytest.raises(BadInput, match=f"^{key}"):
        settings.parse(config)
