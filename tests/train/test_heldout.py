"""Held-out loss: a stage's own loss over all rows, whatever the batches they are cut into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import dpo, reward
from alignment.preference import pair_rows
from data.mixture.loader import lm_batch
from data.tokens.shards import pack_documents
from model import sharding
from tests.alignment.test_dpo import CONFIG, DPO, SEQ_LEN, make_pairs, make_params
from tests.tiny import replace
from train import heldout
from train.heldout import heldout_loss
from train.lm import lm_loss
from train.step import Sums

pytestmark = pytest.mark.usefixtures("quick_compilation")

RTOL = 1e-5


@pytest.fixture
def mesh():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        yield mesh


def text_rows():
    rng = np.random.default_rng(0)
    docs = [rng.integers(3, 64, size).tolist() for size in rng.integers(1, 30, 20)]
    return list(pack_documents(docs, 12, 1, 2))


def given(kind):
    """Loss, rows, and what makes a batch of them."""
    if kind == "lm":
        return lm_loss(replace(CONFIG, chunk_tokens=16), 0.1), text_rows(), lm_batch
    rows, _ = pair_rows(make_pairs(7), SEQ_LEN, 0)
    if kind == "reward":
        return reward.pair_loss(reward.scalar_config(CONFIG), 0.01), rows, dict
    return dpo.dpo_loss(CONFIG, DPO), dpo.with_reference(CONFIG, make_params(), rows, 4), dict


def params_of(kind):
    if kind != "reward":
        return make_params(1)
    return {**make_params(1), "head": np.float32(np.random.default_rng(2).normal(size=16))}


@pytest.mark.parametrize("kind", ["lm", "reward", "dpo"])
@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_it_is_the_loss_of_all_rows_at_once(mesh, kind, batch_size):
    """The last batch is filled up for 2, 4 and 100 alike; what fills it carries no weight."""
    loss, rows, transform = given(kind)
    params = params_of(kind)
    whole = transform({key: np.stack([row[key] for row in rows]) for key in rows[0]})
    sums = jax.jit(loss)(params, {key: jnp.asarray(x) for key, x in whole.items()})
    found = heldout_loss(loss, rows, batch_size, transform, mesh)(params)
    total = sums.objective if sums.loss is None else sums.loss
    expected = {"loss": total / sums.weight, **{k: x / sums.weight for k, x in sums.named.items()}}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=RTOL, err_msg=name)


def test_it_follows_the_parameters_and_compiles_once(mesh):
    loss, rows, transform = given("lm")
    evaluate = heldout_loss(loss, rows, 4, transform, mesh)
    first, second = evaluate(make_params(1)), evaluate(make_params(2))
    assert first["loss"] != second["loss"]
    assert evaluate(make_params(1)) == first


def test_sums_that_are_no_number_are_left_out_and_rows_are_split_over_devices(mesh):
    """A load of each expert is none; and a batch whole on every device would be computed twice."""

    def loss(params, batch):
        loads = {"moe_load": jnp.ones(3), "count": jnp.sum(batch["x"])}
        return Sums(params["w"] * jnp.sum(batch["x"]), jnp.float32(len(batch["x"])), loads)

    placed, plain = [], heldout.place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "place", lambda *x: placed.append(plain(*x)) or placed[-1])
        rows = [{"x": np.float32(i)} for i in range(4)]
        found = heldout_loss(loss, rows, 2, dict, mesh)({"w": np.float32(2)})
    assert found == {"loss": 3.0, "count": 1.5}
    assert (
        all(batch["x"].sharding.shard_shape((2,)) == (1,) for batch in placed) and len(placed) == 2
    )
