"""Experts against a plain loop in float64, and every mesh against one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import moe, sharding
from model.attention import TokenIndex
from model.config import MoEConfig, TransformerConfig
from model.sharding import MeshConfig
from tests.marks import by_default

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOOP_TOL = 2e-5  # float32 against float64
MESH_TOL = 2e-5  # float32 sums taken in another order
SLOPE_TOL = 2e-4  # float32 gradients against differences in float64
B, L, D = 8, 6, 8

MIXTRAL = dict(num_experts=8, top_k=2, d_ff=12)
DEEPSEEK = dict(
    num_experts=8, top_k=3, d_ff=12, shared_d_ff=8, router="sigmoid", scale=2.5, num_groups=4
)
ROUTERS = {
    "mixtral": dict(moe=MIXTRAL),
    "qwen2": dict(moe={**MIXTRAL, "normalize": False, "shared_d_ff": 8, "shared_gate": True}),
    "deepseek2": dict(moe={**MIXTRAL, "normalize": False, "num_groups": 4, "top_groups": 2}),
    "deepseek3": dict(moe={**DEEPSEEK, "top_groups": 2, "balance_bias": True}),
    "gpt_oss": dict(
        moe={**MIXTRAL, "top_k": 4}, mlp="clamped_swiglu", bias=("qkv", "out", "mlp", "router")
    ),
    "switch": dict(moe={**MIXTRAL, "top_k": 1, "normalize": False}, mlp="gelu"),
    "relu2": dict(moe={**MIXTRAL, "num_groups": 8, "router": "sigmoid"}, mlp="relu2"),
}
ROUTERS["relu2"]["moe"]["top_groups"] = 3
# Everything at once, for the meshes.
FULL = dict(
    moe={**DEEPSEEK, "top_groups": 3, "balance_bias": True, "shared_gate": True},
    bias=("mlp", "router"),
)


def make_config(switches, **moe_changes):
    base = dict(vocab_size=32, num_layers=2, d_model=D, num_heads=2, num_kv_heads=1, head_dim=4)
    routed = MoEConfig(**{**switches["moe"], **moe_changes})
    return TransformerConfig(**{**base, "d_ff": 16, **switches, "moe": routed})


def as_weight(param):
    return sharding.Weight("".join(param.out_sharding), param.shape)


@functools.lru_cache(maxsize=32)
def split(config):
    with nnx.use_eager_sharding(False):
        graph, state = jax.eval_shape(lambda: nnx.split(moe.Experts(config, nnx.Rngs(0))))
    declared = nnx.to_pure_dict(state, extract_fn=as_weight)
    return graph, declared


def make_params(config, seed=0):
    """Random weights, biases included; the router's are wide, so that choices are clear."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda weight: np.float32(0.5 * rng.normal(size=weight.shape)),
        split(config)[1],
    )
    params["router"] *= 3
    if "balance_bias" in params:
        params["balance_bias"] = 0.6 * params["balance_bias"] - 1
    return params


def make_batch(seed=1, rows=B, length=L):
    rng = np.random.default_rng(seed)
    segments_BL = np.sort(rng.integers(1, 3, size=(rows, length)), 1)
    segments_BL[1::2, length - 2 :] = 0
    segments_BL[3 % rows] = 0  # a row of padding alone
    return np.float32(rng.normal(size=(rows, length, D))), segments_BL


def apply(config, params, x_BLD, segments_BL):
    positions_BL = np.broadcast_to(np.arange(x_BLD.shape[1]), segments_BL.shape)
    return nnx.merge(split(config)[0], params)(x_BLD, TokenIndex(positions_BL, segments_BL))


def target(x_BLD):
    """The fixed direction in which outputs are read off."""
    return np.float32(np.random.default_rng(9).normal(size=x_BLD.shape))


def loss(config, params, x_BLD, segments_BL, direction_BLD):
    y_BLD, stats = apply(config, params, x_BLD, segments_BL)
    weighted_BLD = jnp.where(segments_BL[..., None] > 0, jnp.float32(y_BLD) * direction_BLD, 0)
    total = jnp.sum(weighted_BLD) + 0.3 * jnp.sum(stats["moe_balance"])
    return total + 0.01 * jnp.sum(stats["moe_z"]), (y_BLD, stats)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, x_BLD, segments_BL, direction_BLD):
    """Loss, outputs, statistics, and gradients of weights and input."""
    measured = jax.value_and_grad(functools.partial(loss, config), (0, 1), has_aux=True)
    return measured(params, x_BLD, segments_BL, direction_BLD)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loop_feed(mlp, x, w):
    """One feed-forward of one token."""
    up = x @ w["up"] + w.get("up_bias", 0)
    gate = x @ w["gate"] + w.get("gate_bias", 0) if "gate" in w else None
    if mlp == "swiglu":
        hidden = gate * sigmoid(gate) * up
    elif mlp == "clamped_swiglu":
        gate, up = np.minimum(gate, 7), np.maximum(np.minimum(up, 7), -7)
        hidden = (up + 1) * gate * sigmoid(1.702 * gate)
    elif mlp == "gelu":
        hidden = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    else:
        hidden = np.maximum(up, 0) ** 2
    return hidden @ w["down"] + w.get("down_bias", 0)


def loop_route(routed, params, x):
    """Logits, scores, and [(expert, weight)] of one token, best first."""
    logits = x @ params["router"] + params.get("router_bias", 0)
    scores = sigmoid(logits) if routed.router == "sigmoid" else np.exp(logits - logits.max())
    scores = scores / (scores.sum() if routed.router == "softmax" else 1)
    biased = scores + params.get("balance_bias", 0)
    each = routed.num_experts // routed.num_groups
    groups = [list(range(g * each, (g + 1) * each)) for g in range(routed.num_groups)]
    count = 2 if routed.router == "sigmoid" else 1
    groups.sort(key=lambda group: -sum(sorted((biased[e] for e in group), reverse=True)[:count]))
    allowed = [e for group in groups[: routed.top_groups] for e in group]
    chosen = sorted(allowed, key=lambda e: -biased[e])[: routed.top_k]
    total = sum(scores[e] for e in chosen) if routed.normalize else 1
    return logits, scores, [(e, routed.scale * scores[e] / total) for e in chosen]


def loop(config, params, x_BLD, segments_BL):
    """The layer, token by token and expert by expert, in float64."""
    routed, E = config.moe, config.moe.num_experts
    params = jax.tree.map(np.float64, params)
    y_BLD, names = np.zeros(x_BLD.shape), ("gate", "up", "down", "gate_bias", "up_bias")
    stats = {name: np.zeros(len(x_BLD)) for name in ("moe_balance", "moe_z", "moe_dropped")}
    stats["moe_load"] = np.zeros((len(x_BLD), E))
    length = x_BLD.shape[1]
    most = np.ceil(routed.capacity_factor * length * routed.top_k / E)
    for b, (x_LD, segments_L) in enumerate(zip(np.float64(x_BLD), segments_BL, strict=True)):
        real = [place for place in range(length) if segments_L[place]]
        routes = {place: loop_route(routed, params, x_LD[place]) for place in real}
        taken, shares = np.zeros(E), np.zeros(E)
        for rank in range(routed.top_k):
            for place in real:
                expert, weight = routes[place][2][rank]
                taken[expert] += 1
                if routed.dispatch == "capacity" and taken[expert] > most:
                    stats["moe_dropped"][b] += 1
                    continue
                w = {n: params[n][expert] for n in (*names, "down_bias") if n in params}
                y_BLD[b, place] += weight * loop_feed(config.mlp, x_LD[place], w)
        for place in real:
            logits, scores, _ = routes[place]
            shares += scores / scores.sum() / len(real)
            stats["moe_z"][b] += np.log(np.exp(logits).sum()) ** 2
        stats["moe_load"][b] = taken
        stats["moe_balance"][b] = E / routed.top_k * (taken * shares).sum()
        for place in range(length) if "shared" in params else ():
            gate = sigmoid(x_LD[place] @ params["shared_gate"]) if "shared_gate" in params else 1
            y_BLD[b, place] += gate * loop_feed(config.mlp, x_LD[place], params["shared"])
    return y_BLD, stats


def assert_close(got, wanted, tol):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol * (1 + np.abs(b).max())),
        got,
        wanted,
    )


@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
@pytest.mark.parametrize("router", ROUTERS)
def test_experts_are_the_loop(router, dispatch):
    config = make_config(ROUTERS[router], dispatch=dispatch, capacity_factor=0.7)
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    _, (y_BLD, stats) = run(config, params, x_BLD, segments_BL, target(x_BLD))[0]
    wanted_BLD, wanted = loop(config, params, x_BLD, segments_BL)
    assert_close(y_BLD, wanted_BLD, LOOP_TOL)
    assert_close(stats, wanted, LOOP_TOL)
    assert (wanted["moe_dropped"].sum() > 0) == (dispatch == "capacity")
    assert {x.dtype for x in stats.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
@pytest.mark.parametrize("router", ["mixtral", "deepseek3", "gpt_oss"])
def test_gradients_are_the_slopes_of_the_loop(router, dispatch):
    config = make_config(ROUTERS[router], dispatch=dispatch, capacity_factor=0.7)
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    direction_BLD = target(x_BLD)
    gradients = run(config, params, x_BLD, segments_BL, direction_BLD)[1]
    _, start = loop(config, params, x_BLD, segments_BL)

    def measure(params, x_BLD):
        y_BLD, stats = loop(config, params, x_BLD, segments_BL)
        np.testing.assert_array_equal(stats["moe_load"], start["moe_load"])
        total = (y_BLD * direction_BLD * (segments_BL > 0)[..., None]).sum()
        return total + 0.3 * stats["moe_balance"].sum() + 0.01 * stats["moe_z"].sum()

    leaves, tree = jax.tree.flatten((params, x_BLD))
    rng = np.random.default_rng(5)
    for number, (path, gradient) in enumerate(jax.tree.leaves_with_path(gradients)):
        if "balance_bias" in jax.tree_util.keystr(path):
            continue  # a surplus, not a slope
        step = 1e-5 * rng.normal(size=gradient.shape)
        ends = []
        for sign in (1, -1):
            moved = [np.float64(leaf) for leaf in leaves]
            moved[number] += sign * step
            ends.append(measure(*jax.tree.unflatten(tree, moved)))
        scale = 1e-5 * np.linalg.norm(gradient)
        assert scale > 0
        assert abs((ends[0] - ends[1]) / 2 - (step * gradient).sum()) < SLOPE_TOL * scale


MESHES = [
    dict(expert=8),
    dict(expert=2, data=4),
    dict(expert=4, data=2),
    dict(expert=4, tensor=2),
    dict(expert=2, fsdp=4),
    dict(expert=4, context=2),
    dict(expert=2, fsdp=2, tensor=2),
    dict(data=2, fsdp=2, tensor=2),
]


def on_mesh(mesh, config, params, x_BLD, segments_BL, direction_BLD):
    shardings = sharding.weight_shardings(split(config)[1], mesh)
    with jax.set_mesh(mesh):
        return run(config, jax.device_put(params, shardings), x_BLD, segments_BL, direction_BLD)


@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
@pytest.mark.parametrize("sizes", by_default(MESHES, 5), ids=str)
def test_mesh_is_one_device(sizes, dispatch):
    config = make_config(FULL, dispatch=dispatch, capacity_factor=0.7)
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    wanted = run(config, params, x_BLD, segments_BL, target(x_BLD))
    mesh = sharding.make_mesh(MeshConfig(**sizes))
    assert_close(on_mesh(mesh, config, params, x_BLD, segments_BL, target(x_BLD)), wanted, MESH_TOL)


@pytest.mark.parametrize(
    ("dispatch", "rules"),
    [
        ("dropless", {"E": (), "D": ("tensor",)}),
        ("dropless", {"B": ("data",)}),
        ("capacity", {"E": ()}),
    ],
    ids=str,
)
def test_other_rules_for_tokens_and_experts_are_one_device(dispatch, rules):
    """Experts' weights that are gathered, and tokens that several devices have."""
    config = make_config(FULL, dispatch=dispatch, capacity_factor=0.7)
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    wanted = run(config, params, x_BLD, segments_BL, target(x_BLD))
    mesh = sharding.make_mesh(MeshConfig(data=2, expert=2, tensor=2, activation_rules=rules))
    assert_close(on_mesh(mesh, config, params, x_BLD, segments_BL, target(x_BLD)), wanted, MESH_TOL)


@pytest.mark.parametrize("shape", by_default([((1, 1),), ((4, 3),)], 0))
@pytest.mark.parametrize("dispatch", by_default(["dropless", "capacity"], 0))
def test_mesh_is_one_device_for_few_tokens(dispatch, shape):
    """Rows that the mesh cannot split are on several devices at once, as in decoding."""
    config = make_config(ROUTERS["gpt_oss"], dispatch=dispatch)
    params, x_BLD = make_params(config), make_batch(2, *shape)[0]
    segments_BL = np.ones(shape, int)
    wanted = run(config, params, x_BLD, segments_BL, target(x_BLD))
    mesh = sharding.make_mesh(MeshConfig(expert=4, data=2))
    got = on_mesh(mesh, config, params, x_BLD, segments_BL, target(x_BLD))
    assert_close(got, wanted, MESH_TOL)


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
def test_experts_work_in_stages_scans_and_checkpoints(dispatch):
    config = make_config(FULL, dispatch=dispatch, capacity_factor=0.7)
    layers = [make_params(config, seed) for seed in range(4)]
    x_SBLD = np.stack([make_batch(seed)[0] for seed in (1, 2)])
    segments_SBL = np.stack([make_batch(seed)[1] for seed in (1, 2)])

    def climb(params_X, x_BLD, segments_BL):
        @jax.checkpoint
        def step(x_BLD, params):
            y_BLD, stats = apply(config, params, x_BLD, segments_BL)
            return x_BLD + y_BLD, stats

        return jax.lax.scan(step, x_BLD, params_X)

    def loss(params_SX, climb_all):
        x_SBLD_, stats = climb_all(params_SX, x_SBLD, segments_SBL)
        total = jnp.sum(x_SBLD_ * (segments_SBL > 0)[..., None]) / 100
        return total + jnp.sum(stats["moe_balance"]), stats

    def one_by_one(params_SX, *rows):
        parts = [climb(*jax.tree.map(lambda x, s=s: x[s], (params_SX, *rows))) for s in (0, 1)]
        return jax.tree.map(lambda *x: jnp.stack(x), *parts)

    stacked = jax.tree.map(lambda *x: np.stack(x).reshape(2, 2, *x[0].shape), *layers)
    measure = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    wanted = measure(stacked, one_by_one)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(stage=2, expert=2, tensor=2))):
        got = measure(stacked, jax.vmap(climb, spmd_axis_name="stage"))
    assert_close(got, wanted, 10 * MESH_TOL)  # four layers deep


@pytest.mark.parametrize("dispatch", by_default(["dropless", "capacity"], 0))
def test_microbatches_add_up_to_the_batch(dispatch):
    config = make_config(FULL, dispatch=dispatch, capacity_factor=0.7)
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    (total, (y_BLD, stats)), (gradients, _) = run(config, params, x_BLD, segments_BL, target(x_BLD))
    halves = [
        run(config, params, x_BLD[part], segments_BL[part], target(x_BLD)[part])
        for part in (slice(0, 4), slice(4, 8))
    ]
    (first, (y_first, stats_first)), (gradients_first, _) = halves[0]
    (second, (y_second, stats_second)), (gradients_second, _) = halves[1]
    join = functools.partial(jax.tree.map, lambda a, b: np.concatenate([a, b]))
    add = functools.partial(jax.tree.map, lambda a, b: a + b)
    assert_close(join(y_first, y_second), y_BLD, MESH_TOL)
    assert_close(join(stats_first, stats_second), stats, MESH_TOL)
    assert_close(first + second, total, MESH_TOL)
    assert_close(add(gradients_first, gradients_second), gradients, MESH_TOL)


@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
def test_padding_changes_nothing(dispatch):
    config = make_config(FULL, dispatch=dispatch, capacity_factor=0.7)
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    padding_BL1 = (segments_BL == 0)[..., None]
    assert padding_BL1.any()
    other_BLD = np.where(padding_BL1, 50 * make_batch(3)[0], x_BLD)
    (total, (y_BLD, stats)), gradients = run(config, params, x_BLD, segments_BL, target(x_BLD))
    (other_total, (z_BLD, other_stats)), other_gradients = run(
        config, params, other_BLD, segments_BL, target(x_BLD)
    )
    np.testing.assert_array_equal(np.where(padding_BL1, 0, y_BLD - z_BLD), 0)
    assert_close((total, stats, gradients), (other_total, other_stats, other_gradients), 1e-7)
    assert not np.where(padding_BL1, gradients[1], 0).any()


@pytest.mark.parametrize("router", ["mixtral", "gpt_oss"])
def test_experts_have_no_order(router):
    config = make_config(ROUTERS[router])
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    order = np.random.default_rng(7).permutation(config.moe.num_experts)
    moved = {name: w if name == "router" else w[order] for name, w in params.items()}
    moved["router"] = params["router"][:, order]
    _, (y_BLD, stats) = run(config, params, x_BLD, segments_BL, target(x_BLD))[0]
    _, (z_BLD, moved_stats) = run(config, moved, x_BLD, segments_BL, target(x_BLD))[0]
    assert_close(z_BLD, y_BLD, MESH_TOL)
    np.testing.assert_array_equal(moved_stats["moe_load"], stats["moe_load"][:, order])


@pytest.mark.parametrize("scale", by_default([1e-6, 1.0, -3.0], 2))
def test_balance_bias_gets_the_surplus_whatever_the_loss(scale):
    config = make_config(FULL)
    params, (x_BLD, segments_BL) = make_params(config), make_batch()

    def scaled(params):
        y_BLD, stats = apply(config, params, x_BLD, segments_BL)
        return scale * jnp.sum(y_BLD), stats["moe_load"]

    gradients, load_BE = jax.jit(jax.grad(scaled, has_aux=True))(params)
    load_E = np.sum(np.asarray(load_BE), 0)
    assert load_E.std() > 1
    np.testing.assert_allclose(gradients["balance_bias"], load_E - load_E.mean(), rtol=1e-6)
    assert load_E.sum() == (segments_BL > 0).sum() * config.moe.top_k


def test_bias_steps_even_out_the_load():
    config = make_config(dict(moe=dict(MIXTRAL, router="sigmoid", balance_bias=True)))
    params, (x_BLD, segments_BL) = make_params(config), make_batch(rows=16, length=16)
    spreads = []
    for _ in range(60):
        (_, (_, stats)), (gradients, _) = run(config, params, x_BLD, segments_BL, target(x_BLD))
        spreads.append(np.sum(stats["moe_load"], 0).std())
        params["balance_bias"] -= 0.02 * np.sign(gradients["balance_bias"])
    assert max(spreads[-5:]) < 0.5 * spreads[0]


@pytest.mark.parametrize(("favourites", "wanted"), [(range(8), 1.0), ([3] * 8, 8.0)])
def test_balance_is_one_where_even_and_most_where_one_expert_gets_all(favourites, wanted):
    config = make_config(dict(moe=dict(num_experts=8, top_k=1, d_ff=4)))
    params = make_params(config)
    params["router"] = np.float32(40 * np.eye(D))
    x_BLD = np.float32(np.eye(D)[list(favourites)])[None]
    stats = run(config, params, x_BLD, np.ones((1, 8), int), target(x_BLD))[0][1][1]
    np.testing.assert_allclose(stats["moe_balance"], 8 * wanted, rtol=1e-6)
    np.testing.assert_allclose(stats["moe_z"], 8 * 40**2, rtol=1e-6)


def test_routing_is_float32_in_bfloat16_too():
    config = make_config(ROUTERS["mixtral"])
    params, (x_BLD, segments_BL) = make_params(config), make_batch()
    rounded_BLD = jnp.asarray(x_BLD, jnp.bfloat16)
    _, (y_BLD, stats) = run(config, params, rounded_BLD, segments_BL, target(x_BLD))[0]
    wanted_BLD, wanted = loop(config, params, np.float32(rounded_BLD), segments_BL)
    assert y_BLD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(stats["moe_load"], wanted["moe_load"])
    assert_close(stats["moe_z"], wanted["moe_z"], LOOP_TOL)
    assert_close(np.float32(y_BLD), wanted_BLD, 2e-2)


def test_fresh_experts_have_the_stated_deviations():
    """As every weight: 1 / fan-in, and the last product smaller by sqrt(2 x layers)."""
    config = make_config({"moe": {**MIXTRAL, "d_ff": 64}}, num_experts=16)
    with nnx.use_eager_sharding(False):
        fresh = nnx.to_pure_dict(nnx.state(moe.Experts(config, nnx.Rngs(0)), nnx.Param))
    assert set(fresh) == {"router", "gate", "up", "down"}
    for name, std in (("gate", D**-0.5), ("up", D**-0.5), ("down", (64 * 4) ** -0.5)):
        np.testing.assert_allclose(np.std(fresh[name]), std, rtol=0.05)
    np.testing.assert_allclose(np.std(fresh["router"]), D**-0.5, rtol=0.3)  # 128 numbers
