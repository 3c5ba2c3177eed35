"""PPO's updates: their rates, their metrics, and a critic that must not be saved blown up."""

import dataclasses

import jax
import numpy as np
import pytest

from alignment import policy, rollout
from data.mixture.loader import Loader
from model import decode, sharding
from tests.alignment.test_ppo import (
    CONFIG,
    CRITIC,
    LOOP,
    OPTIMIZER,
    POLICY,
    REFERENCE,
    ROLLOUT,
    SCORE,
    SHAPE,
    Letters,
    iterate,
    make_prompts,
    make_run,
    measure,
)
from tests.marks import by_default
from train import loop
from train.checkpoint import Checkpointer

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_last_minibatch_of_the_last_iteration_has_the_final_rate():
    """Twelve iterations of 2 epochs of 2 minibatches are 48 updates, falling from 0.01 to 0."""
    fall = dataclasses.replace(OPTIMIZER, decay_fraction=1.0, final_lr_fraction=0.0)
    rate = policy.learning_rate(ROLLOUT, fall, LOOP.num_steps)
    expected = [0.01 * (47 - (4 * iteration + 3)) / 47 for iteration in range(12)]
    np.testing.assert_allclose([rate(i) for i in range(12)], expected, 1e-5, 1e-8)
    assert rate(11) == 0.0


@pytest.fixture(scope="module")
def short():
    """One iteration of two updates each, at a rate at which the critic's numbers overflow."""
    critic_optimizer = dataclasses.replace(OPTIMIZER, peak_lr=1e38)
    once = dataclasses.replace(ROLLOUT, num_epochs=1)
    config = dataclasses.replace(CONFIG, rollout=once, critic_optimizer=critic_optimizer)
    return config, make_run(config)


def test_metrics_are_means_over_the_updates_and_growth_the_greatest(short, monkeypatch):
    seen, mean = [], policy.mean_metrics
    monkeypatch.setattr(
        policy, "mean_metrics", lambda updates: seen.extend(updates) or mean(updates)
    )
    _, measured = iterate(short[1], 1)
    assert len(seen) == 2
    names = {"loss", "grad_norm", "param_growth", "clip_fraction", "entropy", "update_kl"}
    assert set(seen[0]) == names | {"value_loss", "value_grad_norm", "value_param_growth"}
    for name in ("loss", "grad_norm", "entropy", "param_growth"):
        values = [float(update[name]) for update in seen]
        assert values[0] != values[1]
        expected = max(values) if name == "param_growth" else np.mean(values)
        np.testing.assert_allclose(measured[0][name], expected, 1e-5, 1e-7, err_msg=name)
    assert np.isfinite(seen[0]["value_loss"]) and not np.isfinite(measured[0]["value_loss"])


@pytest.mark.parametrize("count", by_default([16, 5, 1], 1, 2))
def test_held_out_reward_is_what_measure_says_of_the_same_answers(count):
    """The last batch is filled up with copies of the first prompt, which do not count."""
    given = jax.tree.map(lambda x: x[:count].astype(np.int32), make_prompts())
    rows = [{name: x[i] for name, x in given.items()} for i in range(count)]
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        evaluate = policy.heldout_reward(
            ROLLOUT, SHAPE, SCORE, REFERENCE, Letters, rows, 16, 5, mesh
        )
        found = evaluate(POLICY)
        filled = {
            name: np.concatenate([x, np.repeat(x[:1], 16 - count, 0)]) for name, x in given.items()
        }
        answers = decode.generate(
            SHAPE,
            POLICY,
            filled["tokens"],
            filled["real"],
            jax.random.fold_in(jax.random.key(5), 0),
            max_new_tokens=ROLLOUT.max_new_tokens,
            temperature=ROLLOUT.temperature,
            end_id=Letters.end_id,
            pad_id=Letters.pad_id,
        )
        tokens_BR, mask_BR = (np.asarray(x)[:count] for x in answers[:2])
        finished_B = ((tokens_BR == Letters.end_id) & (mask_BR == 1)).any(-1)
        sequences = rollout.join(given, tokens_BR, mask_BR)
        _, wanted = measure(CONFIG, SHAPE, POLICY, CRITIC, sequences, finished_B)
    assert count == 1 or (finished_B.any() and not finished_B.all())
    for name in ("reward", "kl"):
        np.testing.assert_allclose(found[name], wanted[name], 1e-5, 1e-6, err_msg=name)
    assert found == evaluate(POLICY)


def test_a_critic_that_blows_up_stops_and_is_not_saved(short, tmp_path):
    """The policy's loss and gradient are finite all the while."""
    config, (mesh, start, iteration) = short
    records = [
        jax.tree.map(lambda x, i=i: x[i].astype(np.int32), make_prompts()) for i in range(16)
    ]
    loader = Loader({"prompts": (records, 1.0)}, 16, 0, dict)
    checkpointer, lines = Checkpointer(tmp_path, {}, {}, 1), []
    with jax.set_mesh(mesh):
        state = start()
    try:
        with jax.set_mesh(mesh), pytest.raises(FloatingPointError, match="the value_.* step 1"):
            loop.run(
                dataclasses.replace(LOOP, num_steps=1),
                state,
                iteration,
                loader,
                mesh,
                checkpointer,
                loop.Watch(lines.append, lines.append, lambda _: None),
                work=loop.Work(80),
                evaluators={},
            )
    finally:
        checkpointer.close()
        loader.close()
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]
