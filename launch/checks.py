"""What is checked before the first stage, so that nothing is refused after hours of training."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment import sft
from data.conversations import Read
from data.errors import BadInput
from data.tokens import chat
from eval import task
from launch import load, own_sets
from launch.settings import Settings
from launch.stages.prompts import find_function
from launch.stages.stage import CHATS, STAGES
from launch.stages.tokenizer import take_tokenizer
from launch.store.rundir import RunDir
from train import checkpoint


def check(chosen: Settings, run: RunDir, names: Sequence[str]) -> None:
    """Refuses what a stage would refuse later: its own data, functions, benchmarks, model to start.

    Args:
      chosen: the settings.
      run: where they run.
      names: the stages that are to run.

    Raises:
      BadInput: what it is, the value and what is allowed.
    """
    _check_start(chosen, run)
    function = chosen.reward.function if chosen.reward else ""
    if function and any("reward.function" in STAGES[name].reads for name in names):
        find_function(function)
    for name in names:
        _check_examples(chosen, name)
    own = {
        name: own_sets.read(chosen, name, lambda _: None)
        for name in names
        if own_sets.sets_of(chosen, name)
    }
    if "eval" in names:
        for name in chosen.eval.tasks:
            _check_shots(task.load(name, chosen.eval.data), chosen.eval.num_shots)
    _check_chat(chosen, own.get("sft", {}))


def _check_examples(chosen: Settings, name: str) -> None:
    section = getattr(chosen, name, None)
    if chosen.instruct is None or chosen.instruct.num_train or own_sets.sets_of(chosen, name):
        return
    if name == "sft" or hasattr(section, "rollout"):
        key = "sft.data" if name == "sft" else "rollout.data"
        raise BadInput(
            f"stages has {name!r}, instruct.num_train is 0 and {key} is empty; set "
            f"{key}.NAME.path, or instruct.num_train above 0"
        )


def _check_start(chosen: Settings, run: RunDir) -> None:
    if not chosen.start:
        return
    start = load.find_start(chosen.start)
    if start.run.path.resolve() == run.path.resolve():
        raise BadInput(f"start={chosen.start}: is this run itself; it must be another one")
    saved = checkpoint.read_config(start.run.checkpoints(start.stage), start.step)
    if chosen.model:
        load.refuse_other_model(load.saved_config(saved), chosen.model, start.run.path)


def _check_shots(found: task.Task, num_shots: int) -> None:
    """One question of each group shows whether there are enough examples before it."""
    for example in {example.group: example for example in found.examples}.values():
        found.prompt(example, num_shots if num_shots >= 0 else found.num_shots)


def _check_chat(chosen: Settings, own: Mapping[str, Read]) -> None:
    """Refuses stages that chat with a tokenizer taken from elsewhere that has no way to.

    Of the user's own conversations one of each order of roles is tried with its template.
    """
    chatting = [name for name in (*CHATS, "reward") if name in chosen.stages]
    if not chatting or not (chosen.start or chosen.tokenizer.path):
        return
    with tempfile.TemporaryDirectory() as folder:
        take_tokenizer(chosen, Path(folder))
        rows, config = chosen.model.vocab_size, chosen.tokenizer
        taken = load.make_loader(Path(folder), chosen.start, config.path, rows, config.control)()
    tried = {
        tuple(message["role"] for message in example.messages): example
        for made in own.values()
        for example in (*made.train, *made.heldout)
    }
    try:
        chat.check(taken)
        for example in tried.values():
            sft.render(taken, example)
    except BadInput as error:
        raise BadInput(f"stages has {chatting[0]!r}: {error}") from error
