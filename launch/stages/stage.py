"""The stages of a run, a row each, in order. No jax here: the command line reads these rows.

The body of a stage is `run(job)` in the module of its name beside this file. The verbs, their
order, what each stage waits for, and the models to measure, chat with or export follow from the
rows; docs/extending.md has what else a new stage takes.
"""

import dataclasses
from collections.abc import Collection, Mapping


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run."""

    name: str  # its verb, folder in a run, section of its own keys, and module of its body
    about: str  # what it does, for --help
    needs: tuple[str, ...] = ()  # stages that a config must name before it
    # Stages whose model it may start from: the last that a config names, or else its `start`.
    starts: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()  # further stages whose results it reads where the config names them
    reads: tuple[str, ...] = ()  # keys and sections that its result depends on; '' for all of them
    code: tuple[str, ...] = ()  # files and packages that compute it
    trains: bool = False  # it keeps checkpoints, in a loop of its own
    shared: bool = False  # runs side by side share its result, which may not depend on the run
    model: str = ""  # what tables call the language model that it makes; '' if it makes none
    chats: bool = False  # that model answers in turns; otherwise it continues a text
    sides: int = 1  # rows of the model for each row of its batch: 2 for a pair of answers

    @property
    def body(self) -> str:
        """The module whose `run(job)` does the work."""
        return f"launch.stages.{self.name}"

    def upstream(self, named: Collection[str]) -> tuple[str, ...]:
        """The stages among `named` whose results it reads, in order."""
        parent = self.parent(named)
        read = {*self.needs, *self.uses, *([parent] if parent else [])}
        return tuple(name for name in STAGES if name in read and name in named)

    def parent(self, named: Collection[str]) -> str | None:
        """The stage among `named` whose model it starts from."""
        return next((name for name in reversed(self.starts) if name in named), None)


_GGUF = ("model/interop/gguf.py", "model/interop/safetensors.py")
_OWN = "launch/own_sets.py"
_TRAIN = ("model", "train", "data", "eval", "launch/job.py", "launch/load.py")
_ALIGN = (*_TRAIN, "alignment", _OWN, "launch/stages/conversations.py")
_POLICY = ("seed", "model", "start_optimizer")

_MAKING = (
    Stage(
        "curate",
        "sources to clean, distinct documents",
        reads=("data",),
        code=(
            *("data", "eval/sets.py", "eval/task.py", "eval/tasks", _OWN),
            *("launch/decontamination.py", "launch/stages/curate.py"),
        ),
        shared=True,
    ),
    Stage(
        "tokenizer",
        "documents to a tokenizer and packed shards",
        needs=("curate",),
        reads=("tokenizer", "model.vocab_size", "mixture", "pretrain.seq_len"),
        code=(
            *("data", *_GGUF, "launch/load.py"),
            *("launch/shard_plan.py", "launch/stages/tokenizer.py"),
        ),
        shared=True,
    ),
    Stage(
        "pretrain",
        "shards to a base model",
        needs=("tokenizer",),
        reads=(*_POLICY, "mixture", "pretrain"),
        code=(
            *(*_TRAIN, "launch/shard_plan.py"),
            *("launch/stages/texts.py", "launch/stages/pretrain.py"),
        ),
        trains=True,
        model="Base",
    ),
    Stage(
        "sft",
        "demonstrations to a model that answers",
        needs=("tokenizer",),
        starts=("pretrain",),
        reads=(*_POLICY, "sft", "instruct"),
        code=(*_ALIGN, "launch/stages/sft.py"),
        trains=True,
        model="SFT",
        chats=True,
    ),
    Stage(
        "reward",
        "preference pairs to a reward model",
        needs=("tokenizer",),
        starts=("sft",),
        reads=(*_POLICY, "reward", "instruct", "eval.batch_size"),
        code=(*_ALIGN, "launch/stages/pairs.py", "launch/stages/reward.py"),
        trains=True,
        sides=2,
    ),
    Stage(
        "dpo",
        "preference pairs straight to a policy",
        needs=("tokenizer",),
        starts=("sft",),
        reads=(*_POLICY, "dpo", "reward.seq_len", "reward.pairs", "reward.data", "instruct"),
        code=(*_ALIGN, "launch/stages/pairs.py", "launch/stages/dpo.py"),
        trains=True,
        model="DPO",
        chats=True,
        sides=2,
    ),
    Stage(
        "ppo",
        "prompts and a reward to a policy",
        needs=("tokenizer", "reward"),
        starts=("sft",),
        reads=(*_POLICY, "ppo", "instruct", "reward.function"),
        code=(*_ALIGN, "launch/stages/prompts.py", "launch/stages/ppo.py"),
        trains=True,
        model="PPO",
        chats=True,
    ),
    Stage(
        "grpo",
        "prompts and a reward to a policy, without a critic",
        needs=("tokenizer", "reward"),
        starts=("sft",),
        reads=(*_POLICY, "grpo", "instruct", "reward.function"),
        code=(*_ALIGN, "launch/stages/prompts.py", "launch/stages/grpo.py"),
        trains=True,
        model="GRPO",
        chats=True,
    ),
)
TRAINED = tuple(row.name for row in _MAKING if row.trains)
# Those that make a language model, and of these the ones that answer in turns.
MODELS = tuple(row.name for row in _MAKING if row.model)
CHATS = tuple(row.name for row in _MAKING if row.chats)
_SHOWING = (
    Stage(
        "eval",
        "every model of the run, measured",
        needs=("tokenizer",),
        starts=MODELS,
        uses=("curate", *TRAINED),
        reads=(
            *("seed", "model"),
            *("eval.batch_size", "eval.max_new_tokens", "eval.num_comparisons"),
            *("eval.tasks", "eval.num_shots", "eval.limit"),
            *("instruct", "pretrain.seq_len"),
        ),
        code=(*_ALIGN, "launch/stages/texts.py", "launch/stages/eval.py"),
    ),
    Stage(
        "report",
        "an HTML report: RUN/report.html",
        uses=("curate", "tokenizer", *TRAINED, "eval"),
        reads=("",),
        code=("launch", "data", "eval", "model"),
    ),
)
STAGES: Mapping[str, Stage] = {row.name: row for row in (*_MAKING, *_SHOWING)}
# In tables: the model that the configuration's `start` names, where no stage here makes its parent.
START = "start"


def sections_of(named: Collection[str]) -> set[str]:
    """Sections of the configuration that the stages named read."""
    return {key.partition(".")[0] for name in named for key in STAGES[name].reads} - {""}
