"""What may differ between an imported model and the run that goes on training it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.errors import BadInput
from launch import training
from model.config import MoEConfig, TransformerConfig


@pytest.mark.parametrize("bad", [60, -1])
def test_a_row_with_a_token_that_the_model_does_not_have_is_refused(bad):
    """By the loader of every stage, before the device would take another token's embedding."""
    settings = SimpleNamespace(seed=0)
    context = SimpleNamespace(settings=settings, run=None)
    rows = [{"tokens": np.array([59, 0, number], np.int32)} for number in (1, 2, 3, bad)]
    model = TransformerConfig(60, 2, 16, 4, 2, 4, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "language_model", lambda _: model)
        fine = training.make_loader(context, {"a": (rows[:3], 1.0)}, 3, dict)
        assert next(fine)["tokens"].shape == (3, 3)
        loader = training.make_loader(context, {"a": (rows, 1.0)}, 4, dict)
    with pytest.raises(BadInput, match=f"'a'.*holds token {bad}; ids must be in .0, 60."):
        next(loader)


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
