"""Checkpoints: exact, whole or absent, of this config or refused, and safe from donation."""

import functools
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.errors import BadInput
from train import checkpoint
from train.checkpoint import Checkpointer, Lazy, load, open_params, params_hash, write

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = {"model": {"num_layers": 2, "gates": ["a", "b"]}, "sft": {"clip": float("inf")}}
LOADER = {"num_batches": 7, "rows": {"docs": 5, "code": 9}, "identity": {"seed": 3}}


def make_trees(fill=0):
    """Parameters and the rest of a state, with awkward numbers among them."""
    rng = np.random.default_rng(fill)
    params = {
        "blocks": {"q": jnp.array(rng.normal(size=(2, 8, 4)), jnp.float32)},
        "norm": jnp.array([0.0, -0.0, 1e-45, np.inf, np.nan, 1 / 3, -1e38, fill], jnp.float32),
        "half": jnp.array(rng.normal(size=8), jnp.bfloat16),
    }
    rest = {"step": jnp.int32(fill), "opt_state": (jnp.arange(8), {"mu": jnp.full(8, 0.1)})}
    return params, rest


def assert_same_bits(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()


@pytest.fixture
def open_checkpointer(tmp_path):
    """Opens checkpointers on one directory, as a process and its successor would."""
    opened = []

    def start(config=CONFIG, max_to_keep=2):
        for one in opened:
            one.close()
        opened[:] = [Checkpointer(tmp_path / "run", config, config, max_to_keep)]
        return opened[0]

    yield start
    for one in opened:
        one.close()


def test_nothing_saved_is_none(open_checkpointer):
    assert open_checkpointer().restore(*make_trees()) is None


def test_what_was_saved_comes_back_bit_for_bit(open_checkpointer):
    params, rest = make_trees(1)
    open_checkpointer().save(12, params, rest, LOADER)
    step, *trees, loader_state = open_checkpointer().restore(*make_trees(2))
    assert step == 12 and loader_state == LOADER
    assert_same_bits(trees, [params, rest])


def test_the_newest_of_several_comes_back_and_the_oldest_goes(open_checkpointer, tmp_path):
    first = open_checkpointer(max_to_keep=2)
    for step in (2, 4, 10):
        first.save(step, *make_trees(step), {**LOADER, "num_batches": step})
    first.wait()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["10", "4"]
    step, params, rest, loader_state = open_checkpointer().restore(*make_trees())
    assert (step, int(rest["step"]), loader_state["num_batches"]) == (10, 10, 10)
    assert_same_bits(params, make_trees(10)[0])


@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x"), PartitionSpec()])
def test_a_checkpoint_moves_to_another_mesh(open_checkpointer, spec):
    """Saved split over eight devices along the first dim, read back in another way."""
    values = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    wide = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    small = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("x",)), spec)
    rest = {"step": jnp.int32(3)}
    open_checkpointer().save(3, {"w": jax.device_put(values, wide)}, rest, LOADER)
    like = {"w": jax.device_put(np.zeros_like(values), small)}
    _, params, _, _ = open_checkpointer().restore(like, rest)
    assert params["w"].sharding == small
    np.testing.assert_array_equal(params["w"], values)


@pytest.mark.parametrize(
    ("params", "rest", "words"),
    [
        ({"w": (16, 9)}, {"step": ()}, r"params.w has shape \(16, 8\), this code has \(16, 9\)"),
        ({"v": (16, 8)}, {"step": ()}, r"params.v has shape absent, this code has \(16, 8\)"),
        ({"w": (16, 8)}, {"step": (1,)}, r"rest.step has shape \(\), this code has \(1,\)"),
        ({"w": (16, 8)}, {}, r"rest.step has shape \(\), this code has absent"),
    ],
)
def test_a_state_of_other_shapes_is_refused_by_name(
    open_checkpointer, tmp_path, params, rest, words
):
    open_checkpointer().save(3, {"w": jnp.zeros((16, 8))}, {"step": jnp.int32(3)}, LOADER)
    params, rest = ({k: jnp.zeros(v) for k, v in shapes.items()} for shapes in (params, rest))
    checkpointer = open_checkpointer()
    with pytest.raises(BadInput, match=words):
        checkpointer.restore(params, rest)
    if "params" in words:
        with pytest.raises(BadInput, match=f"^(?!.*damaged).*{words}"):
            load(tmp_path / "run", lambda config: params)


def test_another_config_is_refused_by_its_key(open_checkpointer):
    open_checkpointer().save(1, *make_trees(), LOADER)
    other = {"model": {"num_layers": 3, "gates": ["a", "b"]}, "sft": {"clip": float("inf")}}
    with pytest.raises(BadInput, match=r"model.num_layers = 2, this run has 3"):
        open_checkpointer(other).restore(*make_trees())
    with pytest.raises(BadInput, match=r"model.gates = \['a', 'b'\], this run has \['a'\]"):
        open_checkpointer({**CONFIG, "model": {"num_layers": 2, "gates": ["a"]}}).restore(
            *make_trees()
        )
    with pytest.raises(BadInput, match="extra.key|extra = 'absent', this run has"):
        open_checkpointer({**CONFIG, "extra": {"key": 1}}).restore(*make_trees())
    assert open_checkpointer().restore(*make_trees())[0] == 1


def test_half_written_checkpoints_are_ignored_and_swept_away(open_checkpointer, tmp_path):
    """A whole one under the name that Orbax writes to before it renames, cut short."""
    params, rest = make_trees(1)
    first = open_checkpointer()
    first.save(5, params, rest, LOADER)
    first.wait()
    half = tmp_path / "run" / "9.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "run" / "5", half)
    shutil.rmtree(half / "params")
    again = open_checkpointer()
    step, found, _, _ = again.restore(*make_trees())
    assert step == 5
    assert_same_bits(found, params)
    again.save(9, *make_trees(9), LOADER)  # which waits for the sweeping
    step, found, _, _ = open_checkpointer().restore(*make_trees())
    assert step == 9
    assert_same_bits(found, make_trees(9)[0])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["5", "9"]


def test_a_checkpoint_has_its_name_only_when_whole(open_checkpointer, tmp_path, monkeypatch):
    """While parameters are still being written, the directory has another name."""
    names, finalize = [], os.rename

    def spy(old, new, *args, **kwargs):
        names.append((Path(old).name, Path(new).name))
        return finalize(old, new, *args, **kwargs)

    monkeypatch.setattr(os, "rename", spy)
    first = open_checkpointer()
    first.save(7, *make_trees(), LOADER)
    first.wait()
    monkeypatch.undo()
    assert names[-1] == ("7.orbax-checkpoint-tmp", "7")
    assert {new for _, new in names[:-1]} == {*checkpoint.TREES, *checkpoint.NOTES}


def test_load_reads_config_and_parameters_alone(open_checkpointer, tmp_path):
    params, rest = make_trees(1)
    open_checkpointer().save(5, params, rest, LOADER)
    open_checkpointer()
    seen = []

    def abstract(config):
        seen.append(config)
        return jax.tree.map(checkpoint.ocp.utils.to_shape_dtype_struct, params)

    config, found = load(tmp_path / "run", abstract)
    assert config == {**CONFIG, "inputs": CONFIG} and seen == [config]
    assert_same_bits(found, params)


def test_load_of_nothing_names_the_directory(tmp_path):
    (tmp_path / "run" / "3.orbax-checkpoint-tmp-1").mkdir(parents=True)
    for directory in (tmp_path / "run", tmp_path / "absent"):
        with pytest.raises(BadInput, match=f"{directory}: no finished checkpoint"):
            load(directory, lambda config: None)


def test_config_must_survive_json(open_checkpointer):
    assert json.loads(json.dumps(CONFIG)) == CONFIG
    open_checkpointer().save(1, *make_trees(), LOADER)
    assert open_checkpointer(json.loads(json.dumps(CONFIG))).restore(*make_trees()) is not None


# ------------------------------------------------------------ part by part

WHOLE = np.random.default_rng(5).normal(size=(8, 16)).astype(np.float32)
STACKED = np.random.default_rng(6).normal(size=(2, 3, 16, 8)).astype(np.float32)
VALUES = {"embedding": WHOLE, "stack0": {"layer0": {"up": STACKED, "scale": STACKED[:, 0, 0]}}}


def make_lazy(array, num_indexed, wrong=None):
    """Parts in another order than that of the indices; `wrong` is what is made of the last."""
    parts = {index: array[index] for index in np.ndindex(array.shape[:num_indexed])}
    if wrong is not None:
        parts[max(parts)] = wrong
    made = [(at, lambda part=part: part) for at, part in reversed(parts.items())]
    return Lazy(array.shape, made)


def make_lazy_tree():
    layer = {"up": make_lazy(STACKED, 2), "scale": make_lazy(STACKED[:, 0, 0], 1)}
    return {"embedding": make_lazy(WHOLE, 0), "stack0": {"layer0": layer}}


@pytest.mark.parametrize("chunk_bytes", [1 << 25, 128, 1])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_what_is_written_part_by_part_is_loaded_onto_any_mesh(
    tmp_path, monkeypatch, chunk_bytes, num_devices
):
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", chunk_bytes)
    write(tmp_path / "run", CONFIG, make_lazy_tree())
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("x",))
    where = (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec(None, None, "x")),
    )

    def abstract(config):
        assert {key: config[key] for key in CONFIG} == CONFIG
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, "float32", sharding=where[x.ndim > 2]), VALUES
        )

    config, params = load(tmp_path / "run", abstract)
    assert_same_bits(params, VALUES)
    assert params["stack0"]["layer0"]["up"].sharding == where[1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["0"]


def test_parts_are_pieces_of_their_own_on_disk(tmp_path, monkeypatch):
    """So that writing one never reads another, and a device reads little beside its own."""
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 100)
    write(tmp_path / "run", CONFIG, make_lazy_tree())
    _, leaves = open_params(tmp_path / "run", lambda _: VALUES)
    chunks = jax.tree.map(lambda leaf: leaf.chunk_layout.write_chunk.shape, leaves)
    layer = {"up": (1, 1, 3, 8), "scale": (1, 8)}
    assert chunks == {"embedding": (1, 16), "stack0": {"layer0": layer}}


def test_parts_are_made_once_and_held_one_at_a_time(tmp_path):
    living, most = set(), []

    class Part(np.ndarray):
        def __del__(self):
            living.discard(id(self))

    def make(index):
        part = STACKED[index].view(Part)
        living.add(id(part))
        most.append(len(living))
        return part

    parts = [(index, functools.partial(make, index)) for index in np.ndindex(2, 3)]
    write(tmp_path / "run", CONFIG, {"up": Lazy(STACKED.shape, parts)})
    assert most == [1] * 6


@pytest.mark.parametrize("written", ["part by part", "at once"])
def test_parameters_are_opened_without_being_read(open_checkpointer, tmp_path, written):
    if written == "at once":
        open_checkpointer().save(3, jax.tree.map(jnp.asarray, VALUES), {"step": jnp.int32(3)}, {})
        open_checkpointer()
    else:
        write(tmp_path / "run", CONFIG, make_lazy_tree())
    config, leaves = open_params(tmp_path / "run", lambda _: VALUES)
    assert {key: config[key] for key in CONFIG} == CONFIG
    np.testing.assert_array_equal(leaves["embedding"].read().result(), WHOLE)
    up = leaves["stack0"]["layer0"]["up"]
    np.testing.assert_array_equal(up[1, 2].read().result(), STACKED[1, 2])


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (
            {"embedding": np.zeros((8, 15))},
            r"run/0: damaged \(embedding has shape \(8, 16\), not \(8, 15\)",
        ),
        ({"embedding": np.zeros((8, 16)), "head": np.zeros(8)}, "run/0: damaged"),
    ],
)
def test_opening_other_parameters_than_there_are_is_refused(tmp_path, declared, words):
    write(tmp_path / "run", CONFIG, make_lazy_tree())
    with pytest.raises(BadInput, match=words):
        open_params(tmp_path / "run", lambda _: declared)


@pytest.mark.parametrize("read", [load, open_params])
def test_what_the_caller_cannot_do_is_no_damage(tmp_path, read):
    write(tmp_path / "run", CONFIG, make_lazy_tree())
    with pytest.raises(BadInput, match="^invalid literal for int"):
        read(tmp_path / "run", lambda _: int("x"))
    with pytest.raises(BadInput, match=r"run/0: damaged \('absent'\)"):
        read(tmp_path / "run", lambda config: config["absent"])


@pytest.mark.parametrize(
    ("lazy", "words"),
    [
        (make_lazy(STACKED, 2, wrong=STACKED[0, 0].T), r"up/: the part at \(1, 2\) has shape"),
        (Lazy(STACKED.shape, make_lazy(STACKED, 2).parts[1:]), "is not covered by parts at"),
        (Lazy(STACKED.shape, make_lazy(STACKED, 1).parts * 2), "is not covered by parts at"),
    ],
)
def test_parts_that_do_not_make_the_parameter_are_refused(tmp_path, lazy, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "run", CONFIG, {"up": lazy})


# ------------------------------------------------------------ donation


@functools.partial(jax.jit, donate_argnums=0)
def overwrite(tree):
    """Writes other numbers into the very buffers that it is given."""
    return jax.tree.map(lambda x: x * 2 + 1, tree)


def big_trees(sharding, num_floats):
    """Parameters and moments of some megabytes each."""
    make = jax.jit(
        lambda key: {
            name: jax.random.normal(jax.random.fold_in(key, i), (num_floats // 256, 256))
            for i, name in enumerate(("w", "mu", "nu"))
        },
        out_shardings=sharding,
    )
    return make(jax.random.key(0))


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_donating_step_right_after_a_save_spoils_nothing(
    open_checkpointer, tmp_path, num_devices
):
    """Three saves in a row, steps in between and none waits: what is on disk is what was saved."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("x",))
    tree = big_trees(NamedSharding(mesh, PartitionSpec("x")), 2**20)
    first, copies, reused = open_checkpointer(max_to_keep=3), {}, 0
    for step in (1, 2, 3):
        # Copied on the device first: a numpy view of an array would forbid its donation.
        copies[step] = jax.tree.map(lambda x: np.asarray(jnp.copy(x)), tree)
        first.save(step, {"w": tree["w"]}, {"moments": (tree["mu"], tree["nu"])}, LOADER)
        for _ in range(4):
            before = buffers(tree)
            tree = overwrite(tree)
            reused += before == buffers(tree)
    first.wait()
    assert reused > 3  # otherwise nothing was overwritten, and this test has tested nothing
    like = jax.tree.map(jnp.zeros_like, tree)
    for step, copy in reversed(copies.items()):
        found_step, params, rest, _ = open_checkpointer().restore(
            {"w": like["w"]}, {"moments": (like["mu"], like["nu"])}
        )
        found = {"w": params["w"], "mu": rest["moments"][0], "nu": rest["moments"][1]}
        assert found_step == step
        assert_same_bits(found, copy)
        shutil.rmtree(tmp_path / "run" / str(step))
    assert (np.asarray(tree["w"]) != copies[3]["w"]).any()


def buffers(tree):
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return {shard.data.unsafe_buffer_pointer() for shard in shards}


# ------------------------------------------------------------ hash


def test_equal_bits_have_equal_hashes_wherever_they_lie():
    params, _ = make_trees(1)
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = jax.device_put(params["norm"], NamedSharding(mesh, PartitionSpec("x")))
    assert params_hash({**params, "norm": spread}) == params_hash(params)
    assert params_hash(dict(reversed(params.items()))) == params_hash(params)


def test_one_bit_changes_the_hash():
    array = np.linspace(-1, 1, 12, dtype=np.float32)
    hashes = {params_hash({"a": array, "b": array})}
    for at in range(12):
        flipped = array.copy()
        flipped.view(np.uint32)[at] ^= 1
        hashes |= {params_hash({"a": flipped, "b": array}), params_hash({"a": array, "b": flipped})}
    assert len(hashes) == 25


def test_names_shapes_and_types_are_hashed_too():
    array = np.zeros(4, np.float32)
    variants = [{"a": array}, {"b": array}, {"a": array, "b": array}, {"a": array.reshape(2, 2)}]
    variants += [{"a": array.view(np.int32)}, {"a": {"a": array}}, {"a": -array}]
    assert len({params_hash(variant) for variant in variants}) == len(variants)
