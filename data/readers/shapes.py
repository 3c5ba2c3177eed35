"""Rows of chat data in the shapes that people publish: conversations, answers, preferences, trees.

This table is the only place that knows them. By their names:

conversation  TURNS: {"messages": [{"role", "content"}]} (OpenAI's; content may be a list of parts),
              {"conversations": [{"from", "value"}]} (ShareGPT)
answer        a PROMPT, with what it is ABOUT, and an ANSWER: {"instruction", "input", "output"}
              (Alpaca, Dolly), {"prompt", "completion"}, {"question", "answer"}, {"inputs",
              "targets"} (P3); {"instruction", "instances": [{"input", "output"}]} (Self-Instruct)
preference    {"chosen", "rejected"}, as texts, messages or whole conversations, the prompt beside
              them or inside of both (as "\\n\\nHuman: ... \\n\\nAssistant: ...", arXiv 2204.05862);
              or a list of RANKED answers, with ranks or scores inside it or beside it
tree          a post with its replies inside ("prompt" around it in Open Assistant's), or a row a
              post, with its parent's id
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

TURNS = ("messages", "conversations")
SPEAKER, WORDS = ("role", "from"), ("content", "value")
PROMPT = ("prompt", "question", "instruction", "inputs_pretokenized", "inputs")
ABOUT = ("input", "context")
ANSWER = ("output", "response", "completion", "answer", "targets_pretokenized", "targets")
CHOSEN, REJECTED, SYSTEM, INSTANCES = "chosen", "rejected", "system", "instances"
RANKED, SCORES = ("responses", "completions", "answers"), ("scores", "ratings")
RANKS, SCORE = ("ranks", "ranking"), ("score", "overall_score", "rating")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    "system": "system",
}
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")

# What posts' fields are called: Open Assistant's, Reddit's, and others'.
POST = {
    "id": ("message_id", "user_message_id", "post_id", "id"),
    "parent": ("parent_message_id", "parent_id", "parent"),
    "thread": ("link_id", "message_tree_id", "thread_id", "topic_id"),
    "title": ("title", "subject"),
    "text": ("body", "selftext", "text", "content", "message"),
    "author": ("role", "author", "user_name", "username", "user_id", "user"),
    "date": ("created_utc", "created_date", "created_at", "date", "timestamp"),
    "score": ("score", "ups", "likes"),
}
REPLIES = ("replies", "children", "comments")
# All names that make a row one of these.
NAMES = frozenset(
    (*TURNS, *PROMPT, *ABOUT, *ANSWER, CHOSEN, REJECTED, SYSTEM, INSTANCES)
    + (*RANKED, *SCORES, *RANKS)
)

Message = dict[str, str]
Turn = tuple[str, str]  # who speaks, as the row calls them, and what they say


class Chat(NamedTuple):
    """A conversation, and the answers that may end it, with their scores, the best first."""

    turns: list[Turn]
    answers: list[tuple[str, float]]

    def messages(self) -> list[Message]:
        """The conversation with its best answer, in the roles user, assistant and system."""
        last = [("assistant", text) for text, _ in self.answers[:1]]
        return [_message(*turn) for turn in (*self.turns, *last)]

    def pairs(self) -> Iterator[tuple[list[Message], str, str]]:
        """(prompt, the better answer, the worse one) of each two that follow in rank."""
        prompt = [_message(*turn) for turn in self.turns]
        for (better, high), (worse, low) in itertools.pairwise(self.answers):
            if high > low:
                answers = (_message("assistant", text)["content"] for text in (better, worse))
                yield (prompt, *answers)


def is_chat(names: Iterable[str]) -> bool:
    """Tells by the names of a row's fields whether it is a conversation, answer or preference."""
    names = set(names)
    has_end = names.intersection((*ANSWER, *RANKED, INSTANCES))
    is_pair = {CHOSEN, REJECTED} <= names
    return is_pair or bool(names.intersection(TURNS) or (names.intersection(PROMPT) and has_end))


def read(row: Mapping[str, Any], ranked: bool = False) -> list[Chat]:
    """Reads a row of any shape.

    Args:
        row: its fields by name.
        ranked: whether a tree gives each place in it with several ranked answers, not the best way
            through it.

    Returns:
        Its conversation; several of a row of instances or a tree. A row without an answer ends
        with the user's turn.

    Raises:
        ValueError: it has none of the shapes, or is damaged.
    """
    if isinstance(row.get("prompt"), Mapping) and _first(row["prompt"], REPLIES) is not None:
        return _tree(row["prompt"], ranked)
    if isinstance(_first(row, REPLIES), list):
        return _tree(row, ranked)
    if isinstance(row.get(INSTANCES), list):
        return [chat for one in row[INSTANCES] for chat in read({**row, INSTANCES: None, **one})]
    system = [("system", row[SYSTEM])] if row.get(SYSTEM) else []
    if row.get(CHOSEN) is not None and row.get(REJECTED) is not None:
        prompt, answers = _pair(row)
        return [Chat(system + prompt, answers)]
    prompt = system + _prompt(row)
    if not prompt:
        raise ValueError(f"has none of the fields {', '.join((*TURNS, *PROMPT))}")
    if isinstance(ranked := _first(row, RANKED), list):
        return [Chat(prompt, _ranked(row, ranked))]
    answer = _first(row, ANSWER)
    return [Chat(prompt, [(words(answer), 0.0)] if answer else [])]


def text(row: Mapping[str, Any]) -> str:
    """A row as text: its turns as 'speaker: words', empty lines between, its best answer last.

    Raises:
        ValueError: as of `read`; or nobody says anything.
    """
    talks = []
    for chat in read(row):
        turns = [*chat.turns, *(("assistant", words) for words, _ in chat.answers[:1])]
        # A turn without words calls a tool.
        talks.append([f"{who}: {what.strip()}" for who, what in turns if what and what.strip()])
    if not any(talks):
        raise ValueError("holds no turn with words")
    return "\n\n".join(itertools.chain.from_iterable(talks))


def words(value: Any) -> str:
    """The text of a turn: a string, or the parts of a list that are text; '' for None.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in value)
        return "\n".join(words(part) for part in parts if part is not None)
    if not isinstance(value, str | None):
        raise ValueError(f"words are {type(value).__name__}, not a string or a list of parts")
    return value or ""


def join_posts(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Makes trees of numbered rows that are a post each: those whose parent is not there."""
    nodes = [(number, {**row, "replies": []}) for number, row in rows]
    by_id = {_first(node, POST["id"]): node for _, node in nodes}
    roots = []
    for number, node in nodes:
        parent = by_id.get(_first(node, POST["parent"]))
        if parent is not None and parent is not node:
            parent["replies"].append(node)
        else:
            roots.append((number, node))
    yield from roots


def is_post(row: Mapping[str, Any]) -> bool:
    """Whether a row is a post of a tree: it names its parent (or that it has none), and itself."""
    has_text = isinstance(_first(row, POST["text"]), str)
    has_parent = any(name in row for name in POST["parent"])
    return has_parent and has_text and _first(row, POST["id"]) is not None


def _tree(root: Mapping[str, Any], ranked: bool) -> list[Chat]:
    chats = []
    stack: list[tuple[Mapping[str, Any], list[Turn]]] = [(root, [])]
    while stack:
        node, above = stack.pop()
        turns = [*above, (str(_first(node, POST["author"])), words(_first(node, POST["text"])))]
        replies = sorted(_first(node, REPLIES) or [], key=_rank)
        if not ranked:
            chats.append(turns)
            replies = replies[:1]
        elif len(replies) > 1 and _rank(replies[-1]) < math.inf:
            answers = [(words(_first(one, POST["text"])), -_rank(one)) for one in replies]
            if all(ROLES.get(_first(one, POST["author"])) == "assistant" for one in replies):
                chats.append(Chat(turns, answers))
        stack += [(reply, turns) for reply in replies]
    if ranked:
        return chats
    ends = [turns for turns in chats if ROLES.get(turns[-1][0]) == "assistant"]
    return [Chat(ends[-1][:-1], [(ends[-1][-1][1], 0.0)]) if ends else Chat(chats[0], [])]


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else math.inf


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first field of these names that says something."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _prompt(row: Mapping[str, Any]) -> list[Turn]:
    for name in TURNS:
        if row.get(name) is not None:
            return _turns(row[name])
    prompt = _first(row, PROMPT)
    if prompt is None or not isinstance(prompt, str):
        return [] if prompt is None else _turns(prompt)
    if TRANSCRIPT.match(prompt):
        return [turn for turn in _turns(prompt) if turn[1]]
    about = _first(row, ABOUT)
    return [("user", f"{prompt}\n\n{words(about)}" if about else prompt)]


def _pair(row: Mapping[str, Any]) -> tuple[list[Turn], list[tuple[str, float]]]:
    sides = [_turns(row[side]) for side in (CHOSEN, REJECTED)]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*sides, strict=False))
    prompt = _prompt(row) or [turn for turn, _ in shared]
    is_answer = [side and ROLES.get(side[-1][0]) == "assistant" for side in sides]
    if not all(is_answer) or any(len(side) > len(prompt) + 1 for side in sides):
        raise ValueError("chosen and rejected are not two answers to one prompt")
    return prompt, [(sides[0][-1][1], 1.0), (sides[1][-1][1], 0.0)]


def _ranked(row: Mapping[str, Any], answers: list) -> list[tuple[str, float]]:
    """Answers with their scores, the best first; one alone where nothing tells which is better."""
    texts, scores = [], []
    for one in answers:
        inner = one if isinstance(one, Mapping) else {}
        texts.append(words(_first(inner, (*WORDS, *ANSWER, "text")) if inner else one))
        score, rank = _first(inner, SCORE), inner.get("rank")
        scores.append(score if score is not None else None if rank is None else -rank)
    beside, ranks = _first(row, SCORES), _first(row, RANKS)
    if beside or ranks:
        scores = beside or [-rank for rank in ranks]
    if len(scores) != len(texts) or not all(isinstance(score, int | float) for score in scores):
        return [(one, 0.0) for one in texts[:1]]
    return sorted(zip(texts, map(float, scores), strict=True), key=lambda pair: -pair[1])


def _turns(value: Any) -> list[Turn]:
    """Turns of a list of them, of the lists of their parts, of one, a transcript, or an answer."""
    if isinstance(value, Mapping):
        lists = {key: part for key, part in value.items() if isinstance(part, list)}
        if set(SPEAKER).isdisjoint(lists):
            value = [value]
        else:
            parts = zip(*lists.values(), strict=True)
            value = [dict(zip(lists, part, strict=True)) for part in parts]
    if isinstance(value, str):
        parts = TRANSCRIPT.split(value)
        if len(parts) == 1:
            return [("assistant", value)]
        said = zip(parts[1::2], parts[2::2], strict=True)
        return [(who.lower(), what.strip()) for who, what in said]
    if not isinstance(value, list):
        raise ValueError(f"turns are {type(value).__name__}, not a list")
    return [_turn(index, turn) for index, turn in enumerate(value)]


def _turn(index: int, turn: Any) -> Turn:
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {index} is {type(turn).__name__}, not an object")
    if not isinstance(who := _first(turn, SPEAKER), str | bytes):
        raise ValueError(f"turn {index} names no speaker; its fields are {sorted(turn)[:9]}")
    return words(who), words(_first(turn, WORDS))


def _message(role: str, content: str) -> Message:
    if role not in ROLES:
        raise ValueError(f"role {role!r} is unknown; allowed: {', '.join(ROLES)}")
    if not content.strip():
        raise ValueError("a message has no text")
    content.encode()  # a lone surrogate is no Unicode text
    return {"role": ROLES[role], "content": content}
