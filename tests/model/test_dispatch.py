"""Parts of the dispatch, also those for other platforms: all-to-all plans, grouped products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from model import dispatch, sharding
from model.sharding import MeshConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

SUM_TOL = 2e-4  # float32 sums of up to 640 products


def test_exchange_follows_the_protocol_of_ragged_all_to_all():
    """The chunks of both ways, sent and received as jax.lax.ragged_all_to_all says in its docs."""
    num_devices, num_local, mesh = 4, 2, sharding.make_mesh(MeshConfig(expert=4, data=2))
    sizes_OE = np.random.default_rng(0).integers(0, 4, (num_devices, num_devices * num_local))

    def plan(sizes_1E):
        send, receive, owned_E = dispatch.plan_exchange(sizes_1E[0], num_local, "expert")
        return jax.tree.map(lambda x: x[None], (send, receive, owned_E))

    spec = PartitionSpec("expert")
    with jax.set_mesh(mesh):
        run = jax.shard_map(plan, in_specs=spec, out_specs=spec, check_vma=False)
        send, receive, owned_OE = jax.jit(run)(sizes_OE)
    sent = [
        [(e, sender, i) for e, size in enumerate(sizes) for i in range(size)]
        for sender, sizes in enumerate(sizes_OE)
    ]
    arrived = exchange(sent, send, num_local)
    for device, rows in enumerate(arrived):
        assert rows == sorted(row for part in sent for row in part if row[0] // num_local == device)
        assert [sum(row[0] % num_local == e for row in rows) for e in range(num_local)] == list(
            owned_OE[device]
        )
    assert exchange(arrived, receive, num_local) == sent


def exchange(rows, plan, per_peer):
    """ragged_all_to_all on lists; nothing may be overwritten and no gap may remain."""
    starts, sizes, landings, expected = (np.asarray(x) for x in plan)
    results = [{} for _ in rows]
    for sender, part in enumerate(rows):
        for chunk in range(len(rows) * per_peer):
            peer, size = chunk // per_peer, sizes[sender, chunk]
            assert expected[peer, sender * per_peer + chunk % per_peer] == size
            for i in range(size):
                place = landings[sender, chunk] + i
                assert place not in results[peer]
                results[peer][place] = part[starts[sender, chunk] + i]
    return [[result[place] for place in range(len(result))] for result in results]


@pytest.mark.parametrize(
    "sizes_E", [(300, 0, 5, 200), (0, 0, 0, 0), (640, 0, 0, 0), (0, 128, 256, 256)], ids=str
)
def test_grouped_products_are_products_of_groups(sizes_E):
    """Those of every platform; rows past the last group may hold anything and change nothing."""
    rng = np.random.default_rng(0)
    rows_AD, gradient_AF = (np.float32(rng.normal(size=(640, size))) for size in (128, 256))
    w_EDF, used = np.float32(rng.normal(size=(4, 128, 256))), sum(sizes_E)
    rows_AD[used:] = np.nan
    parts = np.split(np.arange(used), np.cumsum(sizes_E)[:-1])
    products = [rows_AD[part] @ w for part, w in zip(parts, w_EDF, strict=True)]
    sums = [rows_AD[part].T @ gradient_AF[part] for part in parts]
    rows, gradient = jnp.asarray(rows_AD), jnp.asarray(gradient_AF)
    sizes = jnp.asarray(sizes_E, jnp.int32)
    for multiply in (dispatch.ragged_dot_cpu, jax.lax.ragged_dot):
        got = multiply(rows, jnp.asarray(w_EDF), sizes)[:used]
        np.testing.assert_allclose(got, np.concatenate(products), rtol=SUM_TOL, atol=SUM_TOL)
    kernel = functools.partial(dispatch.weight_gradient_tpu, 128, interpret=True)
    for contract in (dispatch.weight_gradient_cpu, dispatch.weight_gradient_xla, kernel):
        got = contract(rows, gradient, sizes)
        np.testing.assert_allclose(got, np.stack(sums), rtol=SUM_TOL, atol=SUM_TOL)
