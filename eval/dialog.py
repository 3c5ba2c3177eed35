"""Answers to many conversations at once, generated in a few fixed shapes, and their table."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from data import chat
from data.errors import BadInput
from data.instruct import Example
from data.tokenizers.tokenizer import Tokenizer
from eval import tasks
from model import decode
from model.config import TransformerConfig
from model.transformer import Params

# Prompts are padded to a multiple of this, so that generation compiles a few times and no more.
BUCKET_TOKENS = 32
LOG_EVERY_BATCHES = 8


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
) -> list[Response]:
    """Answers every conversation.

    Prompts are sorted by length, padded on the left and generated in batches of one size. A greedy
    answer depends on its own conversation alone; a sampled one on its place among the others too.

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

    Returns:
        Responses in the order of the conversations.

    Raises:
        BadInput: a prompt with the longest answer exceeds max_tokens, or it is malformed.
    """
    prompts = [chat.render_prompt(tokenizer, messages) for messages in conversations]
    limit = (max_tokens or config.max_tokens()) - max_new_tokens
    _check_lengths(prompts, limit, max_new_tokens)
    batches = _plan(prompts, batch_size, limit)
    responses: dict[int, Response] = {}
    for number, (width, chosen) in enumerate(batches):
        tokens_BP, mask_BP = _pad_left([prompts[i] for i in chosen], width, batch_size, tokenizer)
        generation = decode.generate(
            config,
            params,
            tokens_BP,
            mask_BP,
            jax.random.fold_in(jax.random.key(seed), number),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            end_id=chat.end_id(tokenizer),
            pad_id=tokenizer.pad_id,
        )
        rows = zip(np.asarray(generation.tokens_BR), np.asarray(generation.mask_BR), strict=True)
        for index, (tokens_R, mask_R) in zip(chosen, rows, strict=False):
            responses[index] = _response(tokenizer, tokens_R[mask_R == 1])
        if number % LOG_EVERY_BATCHES == LOG_EVERY_BATCHES - 1 or number == len(batches) - 1:
            log(f"answered {len(responses)} of {len(prompts)} prompts")
    return [responses[index] for index in range(len(prompts))]


def evaluate(examples: Sequence[Example], responses: Sequence[Response]) -> dict[str, dict]:
    """The table of `tasks.measure`, with the share of finished answers and their length.

    Args:
        examples: what was asked; at least one.
        responses: the answers, in the same order.

    Returns:
        As `tasks.measure`, and "finished" and "response_tokens", each {"mean", "stderr", "count"}.
    """
    table = tasks.measure(examples, [response.text for response in responses])
    table["finished"] = tasks.summarise([float(response.finished) for response in responses])
    table["response_tokens"] = tasks.summarise([len(response.tokens) for response in responses])
    return table


def _check_lengths(prompts: Sequence[np.ndarray], limit: int, max_new_tokens: int) -> None:
    for index, prompt in enumerate(prompts):
        if len(prompt) > limit:
            raise BadInput(
                f"conversation {index}: its prompt has {len(prompt)} tokens; at most {limit} fit "
                f"beside an answer of {max_new_tokens}"
            )


def _plan(
    prompts: Sequence[np.ndarray], batch_size: int, limit: int
) -> list[tuple[int, list[int]]]:
    """Padded width and conversations of each batch, shortest first."""
    buckets: dict[int, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        rounded = -(-len(prompts[index]) // BUCKET_TOKENS) * BUCKET_TOKENS
        buckets.setdefault(min(rounded, limit), []).append(index)
    return [
        (width, indices[start : start + batch_size])
        for width, indices in buckets.items()
        for start in range(0, len(indices), batch_size)
    ]


def _pad_left(
    prompts: Sequence[np.ndarray], width: int, batch_size: int, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    tokens_BP = np.full((batch_size, width), tokenizer.pad_id, np.int32)
    mask_BP = np.zeros((batch_size, width), np.int32)
    for row in range(batch_size):
        prompt = prompts[row] if row < len(prompts) else prompts[0]
        tokens_BP[row, width - len(prompt) :] = prompt
        mask_BP[row, width - len(prompt) :] = 1
    return tokens_BP, mask_BP


def _response(tokenizer: Tokenizer, tokens: np.ndarray) -> Response:
    ids = tuple(tokens.tolist())
    return Response(chat.read_answer(tokenizer, ids), ids, ids[-1] == chat.end_id(tokenizer))
