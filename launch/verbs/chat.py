"""Chat with the model of a run in its chat format, or let a base model continue a text.

seedbed chat --run=runs/quickstart
"""

import functools
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax

from data.errors import BadInput, printable
from data.tokens import chat
from eval import batching, dialog
from launch import load
from launch.stages.stage import CHATS
from launch.store.rundir import RunDir
from model.sharding import MeshConfig, make_mesh

NEW_TOKENS = 64


def run_chat(
    run: RunDir,
    stage: str,
    prompt: str,
    num_tokens: int | None,
    sampling: Mapping[str, float],
    as_json: bool,
) -> dict:
    """Answers one prompt, or lines of standard input until it ends.

    Args:
      run: the run directory.
      stage: whose model answers; '' for the last finished one. A model that has not learnt to
        answer continues a text.
      prompt: one question; '' reads standard input, each line a turn of one conversation (of a
        base model: a text of its own).
      num_tokens: longest answer; None for the run's own limit.
      sampling: temperature (0 is greedy), top_p and seed.
      as_json: print nothing but the returned object.

    Returns:
      {"stage", "turns": [{"prompt", "answer"}]}; a line of standard input that alone is too long,
      or is not UTF-8, has "error" in place of "answer", and the session continues without it.

    Raises:
      BadInput: there is no such run, it has no such model, or `prompt` is too long.
    """
    described = run.read_config()
    stage = load.choose_stage(run, stage)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config, params = load.load_model(run, stage, mesh)
    load.note_doubts(run, stage, lambda line: print(f"seedbed: {line}", file=sys.stderr))
    tokenizer = load.load_tokenizer(run)
    if num_tokens is None:
        num_tokens = NEW_TOKENS
        if "eval" in described:  # not in an imported run's
            num_tokens = described.value("eval.max_new_tokens", int)
    if stage in CHATS:
        seq_len = described.value("sft.seq_len", int)
        if num_tokens >= seq_len:
            raise BadInput(
                f"--tokens={num_tokens}: must be below sft.seq_len = {seq_len}, which prompt and "
                "answer share"
            )
        reply = _Conversation(config, params, tokenizer, num_tokens, seq_len, sampling)
    elif stage == "import" and tokenizer.chat_template is not None:
        if tokenizer.pad_id is None:  # it fills what no row sees
            tokenizer.pad_id = 0
        limit = config.max_tokens()
        reply = _Conversation(config, params, tokenizer, num_tokens, limit, sampling)
    else:
        reply = functools.partial(_continue, config, params, tokenizer, num_tokens, sampling)
    with jax.set_mesh(mesh):
        if prompt:
            turns = [{"prompt": prompt, "answer": reply(prompt)}]
            if not as_json:
                print(turns[0]["answer"], flush=True)
        else:
            turns = list(_answer_lines(_questions(run.path, stage), reply, as_json))
    return {"stage": stage, "turns": turns}


def _answer_lines(
    questions: Iterable[str], reply: Callable[[str], str], as_json: bool
) -> Iterator[dict]:
    """Turns of a session: a line that cannot be answered is refused, and the next one is read."""
    for question in questions:
        try:
            question.encode()
            turn = {"prompt": question, "answer": reply(question)}
        except (BadInput, UnicodeEncodeError) as error:
            shown = printable(question, len(question))
            why = str(error) if isinstance(error, BadInput) else f"a line is not UTF-8: {shown}"
            print(f"seedbed: {why}", file=sys.stderr, flush=True)
            yield {"prompt": shown, "error": why}
            continue
        if not as_json:
            print(turn["answer"], flush=True)
        yield turn


class _Conversation:
    """Turns of one conversation; what no longer fits is forgotten, oldest turn first."""

    def __init__(self, config, params, tokenizer, num_tokens: int, seq_len: int, sampling):
        self._tokenizer, self._limit, self._messages = tokenizer, seq_len - num_tokens, []
        self._respond = functools.partial(
            dialog.respond,
            config,
            params,
            tokenizer,
            max_tokens=seq_len,
            max_new_tokens=num_tokens,
            batch_size=1,
            log=lambda _: None,
            **sampling,
        )

    def __call__(self, question: str) -> str:
        messages = [*self._messages, {"role": "user", "content": question}]
        while (
            len(messages) > 1 and len(chat.render_prompt(self._tokenizer, messages)) > self._limit
        ):
            del messages[:2]
        answer = self._respond([messages])[0].text
        # Only now: a question that is refused leaves the conversation as it was.
        self._messages = [*messages, {"role": "assistant", "content": answer or " "}]
        return answer


def _continue(config, params, tokenizer, num_tokens: int, sampling, text: str) -> str:
    """What follows a text, until the model ends it."""
    start = [i for i in [tokenizer.bos_id] if i is not None]
    ids = start + tokenizer.encode(text)
    try:
        config.check_length("the prompt", len(ids))
    except ValueError as error:
        raise BadInput(str(error)) from error
    (answer,) = batching.generate(
        config,
        params,
        [ids],
        max_new_tokens=num_tokens,
        batch_size=1,
        end_id=-1 if tokenizer.eos_id is None else tokenizer.eos_id,
        pad_id=0,
        log=lambda _: None,
        **sampling,
    )
    return tokenizer.decode(answer)


def _questions(path: Path, stage: str):
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 ends no session
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
