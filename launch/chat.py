"""Talk to a run: its newest aligned model, its tokenizer, its chat format.

seedbed chat --run=runs/quickstart
"""

import sys
from pathlib import Path

import jax

from data import chat
from data.errors import BadInput
from eval import dialog
from launch import training
from launch.rundir import RunDir
from model.sharding import MeshConfig, make_mesh

# The last of these that the run has finished is the one that answers.
STAGES = ("sft", "dpo", "ppo")


def run_chat(run: RunDir, stage: str, prompt: str, as_json: bool) -> dict:
    """Answers one prompt, or lines of standard input until it ends.

    Args:
      run: the run directory.
      stage: whose model answers; '' for the newest of STAGES.
      prompt: one question; '' reads standard input, each line a turn of one conversation.
      as_json: print nothing but the returned object.

    Returns:
      {"stage", "turns": [{"prompt", "answer"}]}.

    Raises:
      BadInput: the run has no such model, or one question alone is too long.
    """
    stage = stage or _newest(run)
    if stage not in STAGES:
        raise BadInput(f"--stage={stage}: must be one of {', '.join(STAGES)}")
    described = run.read_config()
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    config, params = training.load_model(run, stage, mesh)
    tokenizer = training.load_tokenizer(run)
    if tokenizer.vocab_size != config.vocab_size:
        raise BadInput(
            f"{run.stage('tokenizer')}: its model has {tokenizer.vocab_size} ids and that of "
            f"{stage} {config.vocab_size}; it must be the tokenizer that {stage} was trained with"
        )

    def reply(messages: list[dict]) -> str:
        responses = dialog.respond(
            config,
            params,
            tokenizer,
            [messages],
            seq_len=described["sft"]["seq_len"],
            max_new_tokens=described["eval"]["max_new_tokens"],
            temperature=0.0,
            seed=0,
            batch_size=1,
            log=lambda _: None,
        )
        return responses[0].text

    limit = described["sft"]["seq_len"] - described["eval"]["max_new_tokens"]
    turns, messages = [], []
    for question in [prompt] if prompt else _questions(run.path, stage):
        messages.append({"role": "user", "content": question})
        # What no longer fits is forgotten, oldest turn first.
        while len(messages) > 1 and len(chat.render_prompt(tokenizer, messages)) > limit:
            del messages[:2]
        answer = reply(messages)
        messages.append({"role": "assistant", "content": answer or " "})
        turns.append({"prompt": question, "answer": answer})
        if not as_json:
            print(answer, flush=True)
    return {"stage": stage, "turns": turns}


def _newest(run: RunDir) -> str:
    finished = [stage for stage in STAGES if run.read_done(stage)]
    if not finished:
        raise BadInput(f"{run.path}: no finished stage that can chat; it needs one of {STAGES}")
    return finished[-1]


def _questions(path: Path, stage: str):
    if sys.stdin.isatty():
        print(f"{path}, {stage}. One line a turn; Ctrl-D ends.", file=sys.stderr)
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
