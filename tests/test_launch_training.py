"""What may differ between an imported model and the run that goes on training it."""

import dataclasses
from pathlib import Path

import pytest

from data.errors import BadInput
from launch import training
from model.config import MoEConfig, TransformerConfig


def test_tuning_may_change_how_a_model_is_trained_and_not_which_it_is():
    moe = MoEConfig(num_experts=4, top_k=2, d_ff=8)
    found = TransformerConfig(60, 2, 16, 4, 2, 4, 32, moe=moe)
    free = dataclasses.replace(moe, aux_loss=0.1, z_loss=0.1, dispatch="capacity")
    training._refuse_other_model(
        found, dataclasses.replace(found, moe=free, vocab_multiple=8, remat="full"), Path("RUN")
    )
    other = dataclasses.replace(found, moe=dataclasses.replace(moe, top_k=1))
    with pytest.raises(BadInput, match="model.moe.top_k is 1; it must be 2, as in start=RUN"):
        training._refuse_other_model(found, other, Path("RUN"))
