"""One step: microbatches and devices change no number, nothing compiles twice, state is donated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from model import sharding
from model.config import TransformerConfig
from model.sharding import MeshConfig
from model.transformer import declare, forward
from tests.marks import by_default
from tests.tiny import replace
from train.lm import LMConfig, lm_loss
from train.optimizer import OptimizerConfig, make_optimizer, split
from train.step import RESERVED, Sums, TrainState, init_state, make_step, merge, state_shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPLIT_RTOL = 2e-5  # float32 sums over rows, taken in another order
SPLIT_ATOL = 3e-6
NUM_STEPS = 3

SHAPE = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=24,
    head="tied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)
OPTIMIZER = OptimizerConfig(
    schedule="wsd",
    peak_lr=0.01,
    warmup_steps=2,
    decay_fraction=0.2,
    final_lr_fraction=0.0,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    eps=1e-4,  # large, so that rounding of tiny gradients is not blown up to whole steps
    clip_norm=0.5,
)
Z_LOSS = 0.01


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(around + 0.2 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(SHAPE))


def make_batch(seed):
    """Eight rows of very unequal weight, none at all in two of them."""
    rng = np.random.default_rng(seed)
    density_B = np.array([0.0, 0.1, 0.5, 1.0] * 2)
    weights_BL = (rng.random((8, 12)) < density_B[:, None]).astype(np.float32)
    weights_BL[1, 0] = 1.0
    return {
        "tokens": rng.integers(0, 64, (8, 12)),
        "targets": rng.integers(0, 64, (8, 12)),
        "segments": np.ones((8, 12), np.int32),
        "positions": np.tile(np.arange(12), (8, 1)),
        "weights": weights_BL,
    }


ALONE = ((1, 1, 1), 1)  # one device, one microbatch
BATCHES = [make_batch(seed) for seed in range(NUM_STEPS)]


def counted_loss(params, batch):
    """The language model's loss with a named sum more."""
    sums = lm_loss(replace(SHAPE, chunk_tokens=64), Z_LOSS)(params, batch)
    even = jnp.sum(jnp.where(batch["targets"] % 2 == 0, batch["weights"], 0))
    return sums._replace(named={**sums.named, "even_targets": even})


def train_again(sizes, num_microbatches):
    """Three steps; returns the state on the host, metrics of each step, and what was compiled."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(
        MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))), devices
    )
    optimizer, params = make_optimizer(OPTIMIZER, SHAPE, 20), make_params()
    shardings = state_shardings(optimizer, SHAPE, mesh)
    with jax.set_mesh(mesh):
        state = init_state(params, optimizer, shardings)
        step = make_step(counted_loss, optimizer, num_microbatches, shardings)
        metrics, before = [], None
        for batch in BATCHES:
            before = state
            batch = jax.device_put(batch, sharding.batch_sharding(mesh))
            state, measured = step(state, batch)
            metrics.append(jax.tree.map(float, measured))
    return state, metrics, step, before, shardings


train = functools.cache(train_again)


def assert_same(got, expected):
    for one, other in zip(got[1], expected[1], strict=True):
        for name in expected[1][0]:
            np.testing.assert_allclose(one[name], other[name], SPLIT_RTOL, err_msg=name)
    for (path, leaf), wanted in zip(
        jax.tree.leaves_with_path(got[0]), jax.tree.leaves(expected[0]), strict=True
    ):
        np.testing.assert_allclose(
            leaf, wanted, SPLIT_RTOL, SPLIT_ATOL, err_msg=jax.tree_util.keystr(path)
        )


def test_a_step_is_loss_gradient_and_optax():
    """The steps by hand: means over the weights of plain sums over the logits, and optax."""
    optimizer, params = make_optimizer(OPTIMIZER, SHAPE, 20), make_params()
    opt_state = optimizer.init(params)

    @jax.jit
    def means(params, batch):
        rows = (batch[name] for name in ("tokens", "positions", "segments"))
        logits_BLV = forward(SHAPE, params, *rows)
        lse_BL = jax.nn.logsumexp(logits_BLV, -1)
        chosen_BL1 = jnp.take_along_axis(logits_BLV, batch["targets"][..., None], -1)
        mean = functools.partial(jnp.average, weights=batch["weights"])
        loss, z_loss = mean(lse_BL - chosen_BL1[..., 0]), mean(jnp.square(lse_BL))
        parts = {
            "loss": loss,
            "z_loss": z_loss,
            "even_targets": mean(jnp.float32(batch["targets"] % 2 == 0)),
        }
        return loss + Z_LOSS * z_loss, parts

    grad_fn, update = jax.value_and_grad(means, has_aux=True), jax.jit(optimizer.update)
    for batch, metrics in zip(BATCHES, train(*ALONE)[1], strict=True):
        (_, expected), grads = grad_fn(params, batch)
        updates, opt_state = update(grads, opt_state, params)
        expected["grad_norm"] = optax.tree.norm(grads)
        after = optax.apply_updates(params, updates)
        expected["param_growth"] = optax.tree.norm(after) / optax.tree.norm(params)
        params = after
        assert set(metrics) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, SPLIT_RTOL, err_msg=name)
    for got, wanted in zip(
        jax.tree.leaves(train(*ALONE)[0].params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(got, wanted, SPLIT_RTOL, SPLIT_ATOL)
    assert int(train(*ALONE)[0].step) == NUM_STEPS


@pytest.mark.parametrize(
    ("sizes", "num_microbatches"),
    by_default([((1, 1, 1), 2), ((1, 1, 1), 4), ((8, 1, 1), 1), ((2, 2, 2), 2)], 0, 3),
)
def test_devices_and_microbatches_of_unequal_weight_change_no_number(sizes, num_microbatches):
    assert_same(train(sizes, num_microbatches), train(*ALONE))


def test_a_microbatch_has_its_share_of_the_rows_and_every_so_many_th_of_them():
    """Of 8 rows in 4 parts: two rows at a time are in memory, and rows 1 and 5 are the second."""
    seen = []

    def loss(params, batch):
        assert batch["rows"].shape == (2,)
        jax.debug.callback(lambda rows: seen.append(rows.tolist()), batch["rows"], ordered=True)
        return Sums(params["w"] * batch["rows"].sum(), jnp.float32(2), {})

    optimizer, params = optax.sgd(1.0), {"w": jnp.zeros(())}
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_step(loss, optimizer, 4, shardings)
    new, _ = step(state, {"rows": jnp.arange(8.0)})
    jax.effects_barrier()
    assert seen == [[0, 4], [1, 5], [2, 6], [3, 7]] and float(new.params["w"]) == -28 / 8


def test_a_mean_of_means_would_show():
    """What the test above guards against is far outside its tolerance."""
    sums = jax.jit(counted_loss)
    parts = [{name: x[part::2] for name, x in BATCHES[0].items()} for part in range(2)]
    found = [sums(make_params(), part) for part in parts]
    weights, means = [part.weight for part in found], [part.loss / part.weight for part in found]
    assert abs(np.mean(means) / train(*ALONE)[1][0]["loss"] - 1) > 100 * SPLIT_RTOL
    assert max(weights) > 1.5 * min(weights)


PLACES = [ALONE, ((8, 1, 1), 1), ((2, 2, 2), 2)]


@pytest.mark.parametrize("place", PLACES)
def test_nothing_compiles_after_the_first_step(place):
    assert train(*place)[2]._cache_size() == 1


@pytest.mark.parametrize("place", PLACES)
def test_the_old_state_is_donated(place):
    _, _, _, before, _ = train(*place)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_state_stays_where_it_was_and_moments_lie_with_their_weights():
    state, _, _, _, shardings = train((2, 2, 2), 2)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
    adam = state.opt_state[1][0]
    for moments in (adam.mu, adam.nu):
        for moment, weight in zip(
            jax.tree.leaves(moments), jax.tree.leaves(state.params), strict=True
        ):
            assert moment.sharding == weight.sharding
    q = adam.mu["stack0"]["layer0"]["attention"]["q"]
    assert q.addressable_shards[0].data.size * 4 == q.size


def test_the_starting_parameters_become_the_states():
    """On the device they are the same memory; on the host they are left as they are."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer, on_host = optax.sgd(0.1), make_params()
    shardings = state_shardings(optimizer, SHAPE, mesh)
    params = jax.device_put(jax.tree.map(jnp.asarray, on_host), shardings.params)
    before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]
    state = init_state(params, optimizer, shardings)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.params)] == before
    init_state(on_host, optimizer, shardings)
    jax.tree.map(np.testing.assert_array_equal, state.params, on_host)
    jax.tree.map(np.testing.assert_array_equal, on_host, make_params())


def test_targets_without_weight_change_nothing():
    batch, sums = BATCHES[0], jax.jit(counted_loss)
    changed = {**batch, "targets": np.where(batch["weights"] > 0, batch["targets"], 5)}
    assert sums(make_params(), changed).objective == sums(make_params(), batch).objective
    assert (changed["targets"] != batch["targets"]).any()


@pytest.mark.parametrize("num_microbatches", by_default([1, 2], 1))
def test_a_batch_without_any_target_changes_no_parameter_and_no_moment(num_microbatches):
    """Its metrics are 0. It is counted, by the schedule too, whose last rate is the last step's."""

    def is_schedule(node):
        return isinstance(node, optax.ScaleByScheduleState)

    def split(state):
        nodes = jax.tree.leaves(state[1:], is_leaf=is_schedule)
        counts = [int(node.count) for node in nodes if is_schedule(node)]
        return counts, [node for node in nodes if not is_schedule(node)]

    state, _, step, _, _ = train_again(ALONE[0], num_microbatches)
    before, batch = jax.tree.map(np.asarray, state), BATCHES[0]
    empty = {**batch, "weights": np.zeros_like(batch["weights"])}
    after, metrics = step(state, empty)
    (counts, same), (old_counts, old) = split(after), split(before)
    assert counts == [count + 1 for count in old_counts] and counts
    jax.tree.map(np.testing.assert_array_equal, same, old)
    assert int(after.step) == NUM_STEPS + 1
    assert metrics.pop("param_growth") == 1
    assert all(value == 0 for value in metrics.values())
    assert step(after, batch)[1]["loss"] > 0


@pytest.mark.parametrize("name", RESERVED)
def test_no_named_sum_takes_the_place_of_a_metric_of_the_step_or_the_loop(name):
    def loss_fn(params, batch):
        return Sums(jnp.sum(params["w"]), jnp.float32(2.0), {name: jnp.float32(99.0)})

    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = make_step(loss_fn, optax.sgd(0.1), 1, everywhere)
    state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(3)}, optax.sgd(0.1).init({}))
    with pytest.raises(ValueError, match=f"names sums \\['{name}'\\]"):
        step(state, {})


def test_the_surplus_of_a_balancing_bias_is_no_part_of_the_gradients_norm():
    def loss_fn(params, batch):
        total = jnp.sum(params["layer"]["w"]) * 2 + jnp.sum(params["layer"]["balance_bias"]) * 1e6
        return Sums(total, jnp.float32(2.0), {})

    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    step = make_step(loss_fn, optax.sgd(0.0), 1, NamedSharding(mesh, PartitionSpec()))
    params = {"layer": {"w": jnp.ones(9), "balance_bias": jnp.ones(4)}}
    state = TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(0.0).init(params))
    assert step(state, {})[1]["grad_norm"] == 3.0


def test_a_sum_named_weight_is_a_metric_and_no_divisor():
    def loss_fn(params, batch):
        return Sums(jnp.sum(params["w"]), jnp.float32(2.0), {"weight": jnp.float32(99.0)})

    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    step = make_step(loss_fn, optax.sgd(0.1), 1, NamedSharding(mesh, PartitionSpec()))
    params = {"w": jnp.ones(3)}
    state = TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(0.1).init(params))
    state, metrics = step(state, {})
    assert metrics["loss"] == 1.5 and metrics["weight"] == 49.5
    np.testing.assert_allclose(state.params["w"], 1 - 0.1 / 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seq_len": 1}, "seq_len is 1; .* at least 2"),
        ({"z_loss": -0.1}, "z_loss is -0.1; .* 0 or"),
    ],
)
def test_bad_lm_config_is_named(changes, complaint):
    given = {"seq_len": 8, "z_loss": 0.0, "loop": None, "optimizer": OPTIMIZER}
    assert LMConfig(**given).seq_len == 8
    with pytest.raises(ValueError, match=complaint):
        LMConfig(**(given | changes))


@pytest.mark.parametrize(
    ("kind", "num_microbatches"),
    [
        ("adamw", 1),
        ("muon", 2),
        pytest.param("adamw", 2, marks=pytest.mark.slow),
        pytest.param("muon", 1, marks=pytest.mark.slow),
    ],
)
def test_frozen_weights_stay_and_the_others_move_as_alone(kind, num_microbatches):
    """Against optax on the gradient of the other weights, by autodiff of the whole loss."""
    frozen = ("embedding", "feed_forward")
    config = dataclasses.replace(OPTIMIZER, kind=kind, frozen=frozen)
    mesh = sharding.make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    optimizer, params = make_optimizer(config, SHAPE, 20), make_params()
    trainable, kept = split(params, frozen)
    shardings = state_shardings(optimizer, SHAPE, mesh, frozen)
    opt_state, update = optimizer.init(trainable), jax.jit(optimizer.update)
    with jax.set_mesh(mesh):
        state = init_state(jax.tree.map(jnp.copy, params), optimizer, shardings)
        step = make_step(counted_loss, optimizer, num_microbatches, shardings)
        for batch in BATCHES:
            grads = split(mean_gradient(merge(trainable, kept), batch), frozen)[0]
            updates, opt_state = update(grads, opt_state, trainable)
            trainable = optax.apply_updates(trainable, updates)
            state, metrics = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
            np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, kept)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, state.trainable, trainable)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.opt_state, trainable)]
    assert sizes[0] < 2.1 * sizes[1], "no moments of the others"


@jax.jit
def mean_gradient(params, batch):
    def loss(params):
        sums = counted_loss(params, batch)
        return sums.objective / sums.weight

    return jax.grad(loss)(params)


@pytest.mark.parametrize(
    ("frozen", "words"),
    [
        (
            ("embeding",),
            "frozen has 'embeding'; allowed: attention, attention_norm, down",
        ),
        (("embedding", "norm", "stack0"), "it must leave a weight to train"),
    ],
)
def test_names_of_no_weights_are_refused(frozen, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(dataclasses.replace(OPTIMIZER, frozen=frozen), SHAPE, 20)
