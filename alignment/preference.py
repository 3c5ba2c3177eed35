"""Preference pairs: sampled and corrupted answers, labelled by the gold rater with noise.

A pair keeps token ids, not text alone: what was sampled is what is trained on, never decoded and
encoded again.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.quickstart.instruct import Example
from data.tokens import chat
from data.tokens.tokenizer import Tokenizer
from eval import rater
from eval.dialog import Response
from model.config import require


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """How pairs are made and labelled."""

    num_prompts: int = 1500  # training prompts answered; 0: no pairs are made
    samples_per_prompt: int = 3  # answers each; best and worst by the gold rater are paired
    max_new_tokens: int = 48  # longest of those answers, tokens
    temperature: float = 1.0  # of those answers
    corrupt_rate: float = 0.2  # prompts with a corrupted reference among the answers
    noise_rate: float = 0.05  # labels flipped
    heldout_fraction: float = 0.2  # prompts kept for measuring

    def __post_init__(self):
        require(
            self,
            num_prompts=(self.num_prompts == 0 or self.num_prompts >= 2, "0, or at least 2"),
            samples_per_prompt=(self.samples_per_prompt >= 2, "at least 2"),
            max_new_tokens=(self.max_new_tokens >= 1, "at least 1"),
            temperature=(self.temperature > 0, "above 0"),
            corrupt_rate=(0 <= self.corrupt_rate <= 1, "in [0, 1]"),
            noise_rate=(0 <= self.noise_rate < 0.5, "in [0, 0.5)"),
            heldout_fraction=(0 < self.heldout_fraction < 1, "in (0, 1)"),
        )


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as token ids; `gold_margin` is the rater's, before label noise."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    gold_margin: float


def make_pairs(
    config: PreferenceConfig,
    examples: Sequence[Example],
    samples: Sequence[Sequence[Response]],
    tokenizer: Tokenizer,
    seed: int,
) -> dict[str, list[Pair]]:
    """Labels answers pairwise.

    Of each prompt's samples the best and the worst by the gold rater are paired; with probability
    `corrupt_rate`, a corrupted reference is one more sample. Equal scores make no pair. The label
    is flipped with probability `noise_rate`.

    Args:
      config: rates.
      examples: prompts.
      samples: answers to each prompt, at least two.
      tokenizer: the run's tokenizer.
      seed: of corruption, noise and split.

    Returns:
      {"train", "heldout"}; a prompt's pairs are all on one side.

    Raises:
      BadInput: a split is empty.
    """
    rng = np.random.default_rng(seed)
    pairs: dict[str, list[Pair]] = {"train": [], "heldout": []}
    for example, answers in zip(examples, samples, strict=True):
        split = "heldout" if rng.random() < config.heldout_fraction else "train"
        pair = _pair(config, example, list(answers), tokenizer, rng)
        if pair is not None:
            pairs[split].append(pair)
    for split, found in pairs.items():
        if not found:
            raise BadInput(
                f"reward.pairs.num_prompts is {config.num_prompts}: no {split} pair came of it; "
                "more prompts or a higher heldout_fraction are needed"
            )
    return pairs


def _pair(config, example, answers, tokenizer, rng) -> Pair | None:
    if rng.random() < config.corrupt_rate:
        text = rater.corrupt(example, example.reference, rng)
        ids = tuple(chat.render_answer(tokenizer, example.messages, text).tolist())
        answers.append(Response(text, ids, finished=True))
    scores = [rater.gold_score(example, answer.text, answer.finished) for answer in answers]
    high, low = int(np.argmax(scores)), int(np.argmin(scores))
    preferred = rater.prefer(scores[high], scores[low], config.noise_rate, rng)
    if preferred is None:
        return None
    chosen, rejected = (high, low) if preferred == 0 else (low, high)
    return Pair(
        tuple(chat.render_prompt(tokenizer, example.messages).tolist()),
        tuple(answers[chosen].tokens),
        tuple(answers[rejected].tokens),
        scores[high] - scores[low],
    )


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """One JSON object a line, atomically."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(dataclasses.asdict(pair)) + "\n" for pair in pairs))
    part.replace(path)


def read_pairs(path: Path) -> list[Pair]:
    """What `write_pairs` wrote."""
    lines = map(json.loads, path.read_text().splitlines())
    return [
        Pair(*(tuple(line[key]) for key in ("prompt", "chosen", "rejected")), line["gold_margin"])
        for line in lines
    ]


def pair_rows(
    pairs: Sequence[Pair], seq_len: int, pad_id: int
) -> tuple[list[dict[str, np.ndarray]], int]:
    """Arrays of each pair; index 0 of the first dim is the chosen answer, 1 the rejected one.

    Args:
      pairs: what to lay out.
      seq_len: L; longer pairs are left out.
      pad_id: fills rows on the right.

    Returns:
      (rows {tokens_2L, real_2L, answer_2L, weight}, number of pairs left out); `real` is 1 on all
      tokens and `answer` on those of the answer alone; `weight` is 1, and 0 in a row of zeros.
    """
    rows = []
    for pair in pairs:
        if len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) > seq_len:
            continue
        sides = [
            row(pair.prompt, answer, seq_len, pad_id) for answer in (pair.chosen, pair.rejected)
        ]
        stacked = {key: np.stack([side[key] for side in sides]) for key in sides[0]}
        rows.append({**stacked, "weight": np.float32(1.0)})
    return rows, len(pairs) - len(rows)


def row(
    prompt: Sequence[int], answer: Sequence[int], seq_len: int, pad_id: int
) -> dict[str, np.ndarray]:
    """{tokens_L, real_L, answer_L} of one answer, as in `pair_rows`; it must fit."""
    start, end = len(prompt), len(prompt) + len(answer)
    index_L = np.arange(seq_len)
    tokens_L = np.full(seq_len, pad_id, np.int32)
    tokens_L[:end] = (*prompt, *answer)
    return {
        "tokens": tokens_L,
        "real": (index_L < end).astype(np.int32),
        "answer": ((index_L >= start) & (index_L < end)).astype(np.int32),
    }
