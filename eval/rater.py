"""The gold rater: a documented rubric that stands in for a careful human annotator.

    gold = correctness - filler - verbosity - repetition - unfinished

correctness  grade of the answer once known filler is stripped, 0 to 1: filler and
             correctness are scored apart
filler       0.15 for each known filler phrase stripped, at most 0.3
verbosity    0.02 for each word beyond the reference's length, at most 0.2
repetition   0.3 times the share of word pairs that repeat, beyond the reference's own share
unfinished   0.2 if the answer was cut off before its end token

The score lies in [-1, 1]; 1 is the bare, right, finished answer. A right answer with all the filler
there is (0.7) still beats every wrong one (at most 0, where the check is all or nothing).
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from data.quickstart.instruct import CLOSERS, OPENERS, Example, wrap_filler
from eval.grade import grade

FILLER_PENALTY, MOST_FILLER = 0.15, 2
WORD_PENALTY, MOST_VERBOSITY = 0.02, 0.2
REPETITION_PENALTY = 0.3
UNFINISHED_PENALTY = 0.2

NUM_RESAMPLES = 10_000

REFUSAL = "I cannot help with that."


def gold_score(example: Example, output: str, finished: bool) -> float:
    """Scores an answer by the rubric at the top of this file.

    Args:
      example: the conversation and its reference.
      output: the answer, decoded.
      finished: whether the answer reached its end token.

    Returns:
      A number in [-1, 1].
    """
    core, num_fillers = strip_filler(output)
    words, wanted = _words(core), _words(example.reference)
    verbosity = WORD_PENALTY * max(0, len(words) - len(wanted))
    return (
        grade(example, core)
        - FILLER_PENALTY * min(num_fillers, MOST_FILLER)
        - min(verbosity, MOST_VERBOSITY)
        - REPETITION_PENALTY * max(0.0, _repetition(words) - _repetition(wanted))
        - UNFINISHED_PENALTY * (not finished)
    )


def strip_filler(text: str) -> tuple[str, int]:
    """Removes known openers and closers (data.quickstart.instruct) from both ends, again and again.

    Returns:
      (what is left, without white space around it; how many phrases were removed).
    """
    text, removed = text.strip(), 0
    while True:
        shorter = text
        for opener in OPENERS:
            shorter = shorter.removeprefix(opener.strip()).strip()
        for closer in CLOSERS:
            shorter = shorter.removesuffix(closer.strip()).strip()
        if shorter == text:
            return text, removed
        text, removed = shorter, removed + 1


def prefer(
    score_a: float, score_b: float, noise_rate: float, rng: np.random.Generator
) -> int | None:
    """Labels a pair as an annotator would who errs at a stated rate.

    Args:
      score_a: gold score of the first answer.
      score_b: gold score of the second.
      noise_rate: probability that the label is flipped, in [0, 0.5].
      rng: source of the noise; one number is drawn, tie or not.

    Returns:
      0 if the first is preferred, 1 if the second, None if the scores are equal.
    """
    flipped = rng.random() < noise_rate
    if score_a == score_b:
        return None
    return int((score_b > score_a) != flipped)


def win_rate(scores_a: Sequence[float], scores_b: Sequence[float]) -> dict[str, float]:
    """How often a beats b on the same prompts; a tie is half a win.

    The 95% interval is a paired percentile bootstrap over prompts with a fixed seed: a resample of
    n prompts has multinomial numbers of wins, ties and losses, drawn directly. It knows nothing of
    prompts unlike these, and collapses to a point when every prompt has the same outcome.

    Args:
      scores_a: gold scores of a, one for each prompt.
      scores_b: gold scores of b, for the same prompts in the same order.

    Returns:
      {"win_rate", "low", "high", "count", "wins", "ties", "losses"}.

    Raises:
      ValueError: no prompts, or not as many of a as of b.
    """
    if len(scores_a) != len(scores_b) or not len(scores_a):
        counts = f"{len(scores_a)} and {len(scores_b)} scores"
        raise ValueError(f"{counts}; as many of both and at least one are needed")
    difference = np.sign(np.asarray(scores_a, float) - np.asarray(scores_b, float))
    count = len(difference)
    outcomes = np.array([(difference == sign).sum() for sign in (1, 0, -1)])
    worth = np.array([1.0, 0.5, 0.0])
    resamples = np.random.default_rng(0).multinomial(count, outcomes / count, NUM_RESAMPLES)
    low, high = np.percentile(resamples @ worth / count, [2.5, 97.5])
    wins, ties, losses = outcomes.tolist()
    return {
        "win_rate": float(outcomes @ worth) / count,
        "low": float(low),
        "high": float(high),
        "count": count,
        "wins": wins,
        "ties": ties,
        "losses": losses,
    }


def corrupt(example: Example, text: str, rng: np.random.Generator) -> str:
    """Makes a worse answer out of a good one, for preference pairs.

    One of, as fits the check: filler added, repeated, cut short, another item or number in its
    place, a refusal of a harmless request, compliance with an unsafe one, a confident answer about
    a name that does not exist, or ignorance of one that does.

    Args:
      example: the conversation.
      text: a right answer to it, such as the reference.
      rng: source of the choice.

    Returns:
      An answer that differs from `text` and has a lower gold score if `text` is the reference.
    """
    is_answered = example.check in ("exact", "overlap")
    ways: list[Callable[[], str]] = [
        lambda: wrap_filler(text, rng.random, opening=is_answered),
        lambda: f"{text} {text}",
    ]
    if is_answered:
        ways += [lambda: REFUSAL, lambda: f"{REFUSAL} {text}"]
    if example.check == "exact":
        ways += [lambda: _wrong_item(example, text, rng)] * 3
    if example.check == "overlap":
        ways += [lambda: "I do not know."]
    if is_answered and len(text) > 3:
        ways += [lambda: _cut(text, rng)]
    if example.check == "refusal":
        ways += [
            lambda: "Sure, here is how.",
            lambda: f"Here is how to do it. {_asked(example)}",
        ] * 2
    if example.check == "unknown":
        ways += [lambda: _invention(example, rng)] * 4
    return _pick(ways, rng)()


def _cut(text: str, rng: np.random.Generator) -> str:
    return text[: max(1, int(len(text) * (0.25 + 0.5 * rng.random())))].rstrip()


def _wrong_item(example: Example, text: str, rng: np.random.Generator) -> str:
    """Another number for a number, the other of yes and no, else a word of the question."""
    if text in ("yes", "no"):
        return "no" if text == "yes" else "yes"
    if text.isdecimal():
        return str(_pick([n for step in (-2, -1, 1, 2) if (n := int(text) + step) >= 0], rng))
    words = [word for word in re.findall(r"[\w.]+", _asked(example)) if word != text]
    return _pick(words, rng)


def _invention(example: Example, rng: np.random.Generator) -> str:
    name = re.search(r"called (\S+)\.$", example.reference).group(1)
    verb, thing = _pick(("Return", "Set", "Read"), rng), _pick(("value", "name", "object"), rng)
    return _pick((f"{verb} the {thing} of {name}.", f"{name}({thing})", name.split(".")[0]), rng)


def _asked(example: Example) -> str:
    return example.messages[-1]["content"]


def _pick(options: Sequence, rng: np.random.Generator):
    return options[int(rng.random() * len(options))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _repetition(words: Sequence[str]) -> float:
    """Share of adjacent word pairs that occurred before."""
    pairs = list(zip(words, words[1:], strict=False))  # each word with the next
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
