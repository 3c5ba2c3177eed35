"""Answers to many conversations at once, generated in a few fixed shapes, and their table."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data.errors import BadInput
from data.quickstart.instruct import Example
from data.tokens import chat
from data.tokens.tokenizer import Tokenizer
from eval import batching, grade
from model.config import TransformerConfig
from model.transformer import Params


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer: its text, its token ids (end token included), whether it reached that end."""

    text: str
    tokens: tuple[int, ...]
    finished: bool


def respond(
    config: TransformerConfig,
    params: Params,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[chat.Message]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    log: Callable[[str], None],
    max_tokens: int | None = None,
    top_p: float = 1.0,
) -> list[Response]:
    """Answers every conversation.

    A greedy answer depends on its own conversation alone; a sampled one on its place among the
    others too.

    Args:
      config: shape of the model.
      params: its parameters.
      tokenizer: the run's tokenizer.
      conversations: messages that end with a user turn.
      max_new_tokens: longest answer, its end token included, at least 1.
      temperature: of sampling; 0 is greedy.
      seed: of sampling.
      batch_size: conversations generated together.
      log: takes lines of progress.
      max_tokens: bound on prompt and answer together; None for that of the model's positions.
      top_p: as of `model.sampling.draw`.

    Returns:
      Responses in the order of the conversations.

    Raises:
      BadInput: a prompt with the longest answer exceeds max_tokens, or it is malformed.
    """
    prompts = [chat.render_prompt(tokenizer, messages) for messages in conversations]
    limit = (max_tokens or config.max_tokens()) - max_new_tokens
    _check_lengths(prompts, limit, max_new_tokens)
    end_id = chat.end_id(tokenizer)
    answers = batching.generate(
        config,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        end_id=end_id,
        pad_id=tokenizer.pad_id,
        log=log,
        top_p=top_p,
    )
    return [Response(chat.read_answer(tokenizer, ids), ids, ids[-1] == end_id) for ids in answers]


def evaluate(examples: Sequence[Example], responses: Sequence[Response]) -> dict[str, dict]:
    """The table of `grade.measure`, with the share of finished answers and their length.

    Args:
      examples: what was asked; at least one.
      responses: the answers, in the same order.

    Returns:
      As `grade.measure`, and "finished" and "response_tokens", each {"mean", "stderr", "count"}.
    """
    table = grade.measure(examples, [response.text for response in responses])
    table["finished"] = grade.summarise([float(response.finished) for response in responses])
    table["response_tokens"] = grade.summarise([len(response.tokens) for response in responses])
    return table


def _check_lengths(prompts: Sequence[np.ndarray], limit: int, max_new_tokens: int) -> None:
    for index, prompt in enumerate(prompts):
        if len(prompt) > limit:
            raise BadInput(
                f"conversation {index}: its prompt has {len(prompt)} tokens; at most {limit} fit "
                f"beside an answer of {max_new_tokens}"
            )
