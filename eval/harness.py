"""Measures a model on a benchmark: its outputs, graded, and their means.

Prompts, tokens and scores are those of lm-evaluation-harness 0.4.13 with its Hugging Face model:
_encode_pair of lm_eval/api/model.py, generate_until of lm_eval/models/huggingface.py. Different is
that written answers are generated to their full length and cut at the stops afterwards.
"""

from collections.abc import Callable, Sequence

from data.tokens.tokenizer import Tokenizer
from eval import batching, grade
from eval.task import ANSWER_MARK, Example, Output, Task
from model.config import TransformerConfig
from model.transformer import Params


def measure(
    task: Task,
    config: TransformerConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    num_shots: int,
    limit: int,
    batch_size: int,
    log: Callable[[str], None],
) -> dict:
    """Measures a model on a benchmark.

    Args:
      task: the benchmark.
      config: shape of the model.
      params: its parameters.
      tokenizer: the model's.
      num_shots: examples shown before a question; -1 for as many as the task shows.
      limit: examples asked, spread evenly over all of them; 0 for all.
      batch_size: prompts at once.
      log: takes lines of progress.

    Returns:
      {"mean", "stderr", "count"} of the task's metric, "metric", "version", "shots",
      "metrics" {name: {"mean", "stderr", "count"}}, and "groups", the same of the task's metric
      by group where there are several.

    Raises:
      BadInput: fewer shots than asked for.
    """
    num_shots = task.num_shots if num_shots < 0 else num_shots
    examples = choose(task.examples, limit)
    prompts = [task.prompt(example, num_shots) for example in examples]
    outputs = answer(
        task, examples, prompts, config, params, tokenizer, batch_size=batch_size, log=log
    )
    grades = [task.grade(*pair) for pair in zip(examples, outputs, strict=True)]
    groups: dict[str, list[float]] = {}
    for example, found in zip(examples, grades, strict=True):
        groups.setdefault(example.group, []).append(found[task.metric])
    metrics = {name: grade.summarise([found[name] for found in grades]) for name in grades[0]}
    result = {**metrics[task.metric], "metric": task.metric, "version": task.version}
    result |= {"shots": num_shots, "metrics": metrics}
    if len(groups) > 1:
        result["groups"] = {name: grade.summarise(scores) for name, scores in groups.items()}
    return result


def choose(examples: Sequence, limit: int) -> list:
    """So many of the examples, spread evenly, so that all groups take part; 0 for all."""
    count = min(limit or len(examples), len(examples))
    return [examples[number * len(examples) // count] for number in range(count)]


def answer(
    task: Task,
    examples: Sequence[Example],
    prompts: Sequence[str],
    config: TransformerConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    log: Callable[[str], None],
) -> list[Output]:
    """A model's output for each prompt: text, or the log-probabilities of the example's choices.

    Args:
      task: the benchmark.
      examples: some of its own.
      prompts: theirs, in the same order.
      config, params, tokenizer, batch_size, log: as of `measure`.
    """
    shared = {"batch_size": batch_size, "pad_id": tokenizer.pad_id or 0, "log": log}
    if not examples[0].choices:
        rows = _encode(tokenizer, prompts)
        most = config.max_tokens() - task.max_new_tokens
        rows = [row[-most:] for row in rows]
        sizes = {"max_new_tokens": task.max_new_tokens, "temperature": 0.0, "seed": 0}
        end = tokenizer.eos_id
        written = batching.generate(config, params, rows, end_id=end, **sizes, **shared)
        return [_read(tokenizer, ids, task.stops) for ids in written]
    pairs = [
        (prompt, ANSWER_MARK + choice)
        for example, prompt in zip(examples, prompts, strict=True)
        for choice in example.choices
    ]
    scores = iter(batching.logprobs(config, params, encode_pairs(tokenizer, pairs), **shared))
    return [[next(scores) for _ in example.choices] for example in examples]


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of contexts and continuations, as the two together are encoded.

    White space at the end of a context goes to its continuation. The ids are cut where the context,
    encoded by itself, ends. A context without any ids becomes BOS, or the end of a text where there
    is no BOS.

    Args:
      tokenizer: puts BOS in front where the model knows texts with it.
      pairs: (context, continuation).
    """
    contexts = [context.rstrip() for context, _ in pairs]
    alone = _encode(tokenizer, contexts)
    whole = _encode(tokenizer, [context + continuation for context, continuation in pairs])
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return [
        (ids[: len(context)], ids[len(context) :]) if context else ([first], ids)
        for context, ids in zip(alone, whole, strict=True)
    ]


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    return [[*begin, *ids] for ids in tokenizer.encode_batch(texts)]


def _read(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> str:
    """The text of an answer up to the end of a text or of a turn, or the first stop."""
    ends = [ids.index(end) for end in (tokenizer.eos_id, tokenizer.end_id) if end in ids]
    text = tokenizer.decode(ids[: min(ends, default=len(ids))])
    for stop in stops:
        text = text.partition(stop)[0]
    return text
