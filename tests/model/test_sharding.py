"""The sharding table, and eight devices against one: same loss, same gradients, on any mesh."""

import ast
import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from model import sharding
from model.config import HEADS, TransformerConfig
from model.decode import generate
from model.loss import token_logprobs
from model.sharding import MeshConfig, Weight
from model.transformer import declare, forward, init
from tests.marks import by_default

pytestmark = pytest.mark.usefixtures("quick_compilation")

MESH_RTOL = 2e-5  # float32 sums taken in another order
MESH_ATOL = 2e-6
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (4, 1, 2)]

CONFIG = TransformerConfig(
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


def make_mesh(sizes):
    return sharding.make_mesh(
        MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    )


def make_params(config, seed=0):
    """Random weights, norm scales included, so that none of them is a bystander."""
    rng = np.random.default_rng(seed)

    def draw(weight):
        around = 1.0 if weight.letters[-1] in "DH" and len(weight.shape) <= 2 else 0.0
        return np.float32(around + 0.25 * rng.normal(size=weight.shape))

    return jax.tree.map(draw, declare(config))


def make_batch(seed=0):
    """Eight rows of two or three documents and some padding, weights of any size."""
    rng = np.random.default_rng(seed)
    segments_BL = np.sort(rng.integers(1, 4, size=(8, 12)), axis=1)
    starts_BL = np.diff(segments_BL, axis=1, prepend=0) != 0
    start_BL = np.maximum.accumulate(np.where(starts_BL, np.arange(12), 0), axis=1)
    segments_BL[::2, 10:] = 0
    return {
        "tokens": rng.integers(0, 64, (8, 12)),
        "targets": rng.integers(0, 64, (8, 12)),
        "segments": segments_BL,
        "positions": np.arange(12) - start_BL,
        "weights": np.float32(rng.uniform(size=(8, 12)) * (segments_BL > 0)),
    }


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grad(config, params, batch):
    def loss(params):
        out = forward(config, params, batch["tokens"], batch["positions"], batch["segments"])
        if config.head != "scalar":
            out = token_logprobs(out, batch["targets"], 1.0)
        return jnp.sum(out * batch["weights"]) / jnp.sum(batch["weights"])

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def on_one_device():
    return functools.cache(
        lambda head: loss_and_grad(
            dataclasses.replace(CONFIG, head=head),
            make_params(dataclasses.replace(CONFIG, head=head)),
            make_batch(),
        )
    )


def assert_trees_close(tree, expected):
    for (path, leaf), wanted in zip(
        jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        assert np.abs(wanted).max() > 0, path
        np.testing.assert_allclose(
            leaf, wanted, MESH_RTOL, MESH_ATOL, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize(
    ("sizes", "head"),
    by_default(
        [*((sizes, "tied") for sizes in MESHES), ((2, 2, 2), "untied"), ((2, 2, 2), "scalar")],
        0,
    ),
)
def test_eight_devices_give_the_loss_and_gradients_of_one(sizes, head, on_one_device):
    config, mesh = dataclasses.replace(CONFIG, head=head), make_mesh(sizes)
    shardings = sharding.weight_shardings(declare(config), mesh)
    params = jax.device_put(make_params(config), shardings)
    batch = jax.device_put(make_batch(), sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        loss, grads = loss_and_grad(config, params, batch)
    expected_loss, expected_grads = on_one_device(head)
    np.testing.assert_allclose(loss, expected_loss, MESH_RTOL)
    assert_trees_close(grads, expected_grads)


RULES = {
    "weights over data too": ({"D": ("fsdp", "data"), "F": (), "V": ()}, {}),
    "activations along D": ({}, {"D": ("tensor",), "F": ()}),
    "heads and vocabulary whole": ({"V": ("fsdp",)}, {"N": (), "K": (), "V": ()}),
    "rows over data alone": ({"D": ("tensor",)}, {"B": ("data",), "F": ()}),
}


@pytest.mark.parametrize("rules", RULES)
def test_other_rules_give_the_loss_and_gradients_of_one_device(rules, on_one_device):
    """And the program of other rules is not used again, though all else is alike."""
    weights, activations = RULES[rules]
    plain = MeshConfig(data=2, fsdp=2, tensor=2)
    other = dataclasses.replace(plain, weight_rules=weights, activation_rules=activations)
    expected_loss, expected_grads = on_one_device("tied")
    placed, programs = [], []
    for mesh in map(sharding.make_mesh, (plain, other)):
        shardings = sharding.weight_shardings(declare(CONFIG), mesh)
        params = jax.device_put(make_params(CONFIG), shardings)
        batch = jax.device_put(make_batch(), sharding.batch_sharding(mesh))
        placed.append([x.sharding.spec for x in jax.tree.leaves((params, batch))])
        with jax.set_mesh(mesh):
            programs.append(loss_and_grad.lower(CONFIG, params, batch).as_text())
            loss, grads = loss_and_grad(CONFIG, params, batch)
        np.testing.assert_allclose(loss, expected_loss, MESH_RTOL)
        assert_trees_close(grads, expected_grads)
    assert (placed[0] != placed[1]) == bool(weights or "B" in activations)
    assert programs[0] != programs[1]


def test_rules_replace_entries_of_the_table_for_one_mesh():
    x_BLV = np.ones((8, 3, 16), np.float32)
    pin = jax.jit(lambda x: sharding.constrain(x, "BLV"))
    shapes = []
    for rules in ({}, {"V": ()}, {}, {"B": ("fsdp",)}):
        with jax.set_mesh(
            sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, activation_rules=rules))
        ):
            shapes.append(pin(x_BLV).sharding.shard_shape(x_BLV.shape))
    assert shapes == [(2, 3, 8), (2, 3, 16), (2, 3, 8), (4, 3, 8)]
    sizes = MeshConfig(data=1, fsdp=2, tensor=2, weight_rules={"F": ("fsdp",)}).axis_sizes()
    assert sharding.weight_spec(Weight("FH", (24, 8)), sizes) == PartitionSpec("fsdp", None)
    assert sharding.weight_spec(Weight("FH", (24, 8)), {"fsdp": 2, "tensor": 2})[0] == "tensor"
    declared = {"up": Weight("FH", (25, 8))}
    with pytest.raises(ValueError, match="mesh.fsdp is 2, but dim F of weight up is 25"):
        sharding.check_splits(declared, sizes)


@pytest.mark.parametrize(
    ("key", "rules", "complaint"),
    [
        ("weight_rules", {"Q": ("fsdp",)}, "weight_rules has 'Q'; allowed: B, C, D, E"),
        ("weight_rules", {"_": ("fsdp",)}, "weight_rules has '_'; allowed"),
        ("weight_rules", {"F": ("model",)}, r"weight_rules.F is \('model',\); it must be some of"),
        ("weight_rules", {"F": ("fsdp", "fsdp")}, "it must be some of .* each once"),
        (
            "activation_rules",
            {"L": ()},
            "activation_rules has 'L'; allowed: B, C, D, E, F, K, N, V",
        ),
        ("activation_rules", {"F": ("data",)}, r"F is \('data',\); .* some of \('tensor',\)"),
        ("activation_rules", {"K": ()}, r"N is \('tensor',\); it must be that of K, \(\)"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(key, rules, complaint):
    with pytest.raises(ValueError, match=complaint):
        MeshConfig(**{key: rules})


def test_generation_on_a_mesh_is_generation_on_one_device():
    mesh, params = make_mesh((2, 2, 2)), make_params(CONFIG)
    prompt_BP = np.random.default_rng(1).integers(8, 64, (8, 5))
    real_BP = (np.arange(5) >= np.arange(8)[:, None] % 4).astype(np.int32)
    sample = functools.partial(
        generate, CONFIG, max_new_tokens=6, temperature=1.0, end_id=7, pad_id=0
    )
    expected = sample(params, prompt_BP, real_BP, jax.random.key(2))
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, sharding.weight_shardings(declare(CONFIG), mesh))
        prompt = jax.device_put((prompt_BP, real_BP), sharding.batch_sharding(mesh))
        got = sample(spread, *prompt, jax.random.key(2))
    np.testing.assert_array_equal(got.tokens_BR, expected.tokens_BR)
    np.testing.assert_allclose(got.logprobs_BR, expected.logprobs_BR, MESH_RTOL, MESH_ATOL)


def test_each_device_holds_its_share_of_a_weight():
    mesh = make_mesh((2, 2, 2))
    shardings = sharding.weight_shardings(declare(CONFIG), mesh)
    params = jax.device_put(make_params(CONFIG), shardings)
    shares = {
        "embedding": (params["embedding"], (32, 8)),  # V over tensor, D over fsdp
        "q": (
            params["stack0"]["layer0"]["attention"]["q"],
            (2, 8, 2, 8),
        ),  # D over fsdp, N over tensor
        "k": (params["stack0"]["layer0"]["attention"]["k"], (2, 8, 1, 8)),  # K over tensor
        "down": (params["stack0"]["layer0"]["feed_forward"]["down"], (2, 12, 8)),  # F over tensor
        "norm": (params["norm"]["scale"], (8,)),
    }
    found = {name: leaf.addressable_shards[0].data.shape for name, (leaf, _) in shares.items()}
    assert found == {name: shape for name, (_, shape) in shares.items()}


def test_batch_rows_lie_on_the_data_and_fsdp_axes():
    batch = jax.device_put(make_batch(), sharding.batch_sharding(make_mesh((2, 2, 2))))
    assert batch["tokens"].addressable_shards[0].data.shape == (2, 12)


def test_specs_follow_the_table():
    sizes = {"data": 2, "fsdp": 2, "expert": 2, "context": 2, "tensor": 2, "stage": 2}
    stored = ("fsdp", "expert", "context")
    for letters, shape, expected in [
        ("XDNH", (2, 16, 4, 8), ("stage", stored, "tensor", None)),
        ("VD", (64, 16), ("tensor", (*stored, "stage"))),
        ("XEDF", (2, 4, 16, 24), ("stage", "expert", ("fsdp", "context"), "tensor")),
        ("XDKH", (3, 16, 1, 8), (None, (*stored, "stage"), None, None)),  # 3 and 1 do not divide
    ]:
        assert sharding.weight_spec(Weight(letters, shape), sizes) == PartitionSpec(*expected)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        assert sharding.activation_spec("BLD") == PartitionSpec(("data", "fsdp"), None, None)
        assert sharding.activation_spec("BLV") == PartitionSpec(("data", "fsdp"), None, "tensor")
        assert sharding.activation_spec("BLD", (2, 5, 3)) == PartitionSpec("data", None, None)


@pytest.mark.parametrize("head", HEADS)
def test_no_weight_uses_an_axis_twice(head):
    config, sizes = dataclasses.replace(CONFIG, head=head), dict.fromkeys(sharding.AXES, 2)
    leaves = jax.tree.leaves(declare(config))
    for weight in leaves:
        axes = sharding.axes_of(sharding.weight_spec(weight, sizes))
        assert axes and len(axes) == len(set(axes)), weight


def test_replicated_bytes_by_hand():
    """K = 1 cannot be cut in two: half of that weight's bytes are one copy too many."""
    sizes = {"fsdp": 2, "tensor": 2}
    declared = {"q": Weight("DNH", (8, 2, 4)), "k": Weight("DKH", (8, 1, 4))}
    assert sharding.replicated(declared, sizes) == 16 / (64 + 32)
    assert sharding.replicated(declared, {"fsdp": 2, "data": 4}) == 0.0
    assert sharding.replicated({"q": declared["q"]}, sizes) == 0.0


def test_constrain_pins_an_activation_only_within_a_mesh():
    x_BLD = np.ones((8, 3, 16), np.float32)
    assert sharding.constrain(x_BLD, "BLD") is x_BLD
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: sharding.constrain(x, "BLD"))(x_BLD)
    assert pinned.sharding.shard_shape(pinned.shape) == (2, 3, 16)


def test_what_is_marked_as_unsplit_is_whole_on_each_device():
    x_BLV, mesh = jnp.ones((8, 3, 16)), make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        split, row, whole = jax.jit(
            lambda x: (
                sharding.constrain(x, "BLV"),
                sharding.constrain(x, "BL_"),
                sharding.replicate(x),
            )
        )(x_BLV)
    shapes = [x.sharding.shard_shape(x.shape) for x in (split, row, whole)]
    assert shapes == [(2, 3, 8), (2, 3, 16), (8, 3, 16)]
    assert sharding.replicate(x_BLV) is x_BLV


def name_letters(source):
    """(x_BLD, BLD) of constrain(x_BLD, "BLD") and of activation_spec("BLD", x_BLD.shape)."""
    name = r"(\w+_[A-Z]+)"
    for node in ast.walk(ast.parse(source)):
        call = ast.unparse(node) if isinstance(node, ast.Call) else ""
        if found := re.fullmatch(rf"sharding.constrain\({name}, '(\w+)'\)", call):
            yield found.groups()
        if found := re.fullmatch(rf"sharding.activation_spec\('(\w+)', {name}.shape\)", call):
            yield found.groups()[::-1]


def test_letters_handed_to_the_table_are_those_of_the_name():
    """`_` may stand for any of them."""
    calls = [
        (path.name, name, letters)
        for path in sorted(Path(sharding.__file__).parent.glob("*.py"))
        for name, letters in name_letters(path.read_text(encoding="utf-8"))
    ]
    assert len(calls) > 12
    for path, name, letters in calls:
        suffix = name.rpartition("_")[2]
        assert re.fullmatch(letters.replace("_", "."), suffix), (path, name, letters)


def test_mesh_of_some_devices():
    devices = jax.devices()[2:6]
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), devices)
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == {"fsdp": 2, "tensor": 2}
    assert mesh.devices.flatten().tolist() == devices


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a pod, as far as laying out goes: there is none here."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize("axis", sharding.AXES)
def test_an_axis_across_slices_crosses_them_outermost(axis):
    """Two slices of four: two along `axis` inside, two along tensor or data, and the slices."""
    other = "tensor" if axis != "tensor" else "data"
    chips = [Chip(number, number % 2) for number in range(8)]
    sizes = {axis: 2}
    mesh = sharding.make_mesh(MeshConfig(**{axis: 2, other: 2}, slices=sizes), chips)
    assert mesh.shape[axis] == 4 and mesh.shape[other] == 2
    along = np.moveaxis(mesh.devices, sharding.AXES.index(axis), 0).reshape(4, 2)
    slices = [[chip.slice_index for chip in part] for part in along]
    assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_slices_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="2 slices asked; the devices are in 1, of"):
        sharding.make_mesh(MeshConfig(data=4, slices={"data": 2}))


@pytest.mark.parametrize(
    ("sizes", "numbers"),
    [((3, 1, 1), ("data 3", "= 3 devices", "8")), ((2, 4, 2), ("fsdp 4", "= 16 devices", "8"))],
)
def test_mesh_of_another_number_of_devices_is_refused(sizes, numbers):
    with pytest.raises(ValueError, match="mesh") as refused:
        make_mesh(sizes)
    assert all(number in str(refused.value) for number in numbers), refused.value


@pytest.mark.parametrize("axis", sharding.AXES)
def test_axis_below_one_is_refused(axis):
    with pytest.raises(ValueError, match=f"{axis} is 0; it must be at least 1"):
        MeshConfig(**{axis: 0})


@pytest.mark.parametrize(
    ("axes", "changes", "complaint"),
    [
        (
            {"fsdp": 1, "tensor": 8},
            {},
            "mesh.tensor is 8, but dim N of weight stack0.layer0.attention.(out|q) is 4",
        ),
        ({"fsdp": 3, "tensor": 1}, {}, "mesh.fsdp is 3, but dim D of weight"),
        ({"fsdp": 1, "tensor": 2}, {"vocab_size": 63}, "dim V of weight embedding is 63"),
        ({"fsdp": 1, "tensor": 2}, {"d_ff": 25}, "dim F of weight stack0.layer0.feed_forward"),
    ],
)
def test_weights_that_cannot_be_split_are_named(axes, changes, complaint):
    declared = declare(dataclasses.replace(CONFIG, **changes))
    with pytest.raises(ValueError, match=complaint):
        sharding.check_splits(declared, axes)


def test_init_refuses_a_mesh_that_cannot_split_it():
    with pytest.raises(ValueError, match=r"mesh.tensor is 8, but dim N of .* is 4"):
        init(CONFIG, jax.random.key(0), make_mesh((1, 1, 8)))


def test_what_does_not_divide_may_be_left_whole():
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))
    declared = {"embedding": Weight("VD", (61, 16))}
    places = sharding.weight_shardings(declared, mesh, strict=False)
    assert places["embedding"].spec == PartitionSpec(None, "fsdp")
    with pytest.raises(ValueError, match="dim V of weight embedding is 61"):
        sharding.weight_shardings(declared, mesh)
