"""The chat template of an imported tokenizer: messages to ids, as transformers renders them.

A template is Jinja source that others wrote, so it runs in Jinja's immutable sandbox. The settings
and helpers are those of transformers' `apply_chat_template`, and so are the ids of any conversation
that does not spell a special token. One that does is encoded as with its option
`sanitize_control_tokens`: special tokens in a message are text, only those that the template writes
are tokens, and nobody can end their own turn. Added tokens that are not special are found in
messages too, as in any text (tokenizer.py).

What the template was shown for marks in the text are noncharacters that no message holds.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import jinja2
import jinja2.ext
import numpy as np
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.errors import BadInput

Message = Mapping[str, str]
Span = tuple[int, int]

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
QUESTION, ANSWER = "What is asked?", "What is answered."
# Names of the variables that `{% generation %}` and `{% endgeneration %}` print.
BEGIN, END = "marks_begin_of_generation", "marks_end_of_generation"


class Encoder(Protocol):
    """What a template needs of tokenizer.Tokenizer."""

    def encode(self, text: str, *, special: bool) -> list[int]: ...


class Turn(NamedTuple):
    """What the template writes around an answer.

    before: between the prompt and the answer ('' where the prompt does not begin the rendering).
    after: between the answer and `end`, the token that ends the turn.
    """

    before: str
    after: str
    end: str


class Marks(NamedTuple):
    """Characters that stand for nothing else in one conversation."""

    token_begin: str
    token_end: str
    turn_begin: str
    turn_end: str


class ChatTemplate:
    """A template together with the tokenizer that it was published with.

    Args:
        source: Jinja source.
        variables: special tokens by the names that templates have for them, such as `bos_token`.
        special: ids of the special tokens, by their text.
        encoder: the tokenizer.
        date: what the template is told when it asks for the day; today's, as in transformers, where
            it is None.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        special: Mapping[str, int],
        encoder: Encoder,
        date: datetime | None = None,
    ):
        self._source, self._variables, self._encoder = source, dict(variables), encoder
        self._special, self._date = special, date
        longest = sorted(special, key=len, reverse=True)
        self._special_re = re.compile("|".join(map(re.escape, longest)) or "(?!)")

    def render(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a conversation, and the mask of what the assistant is to learn.

        Where the template has `{% generation %}` blocks, they are what is learned. Otherwise an
        assistant's turn is learned, from the end of its own prompt to the token that ends it, if
        the conversation shows it as it is shown when it is the last one. A template that shows
        earlier turns in another way (without their reasoning, say) supervises the last one alone.

        Args:
            messages: as data.tokens.chat checks them.

        Returns:
            ids_T: int32, equal to `apply_chat_template(messages)`.
            mask_T: uint8.

        Raises:
            BadInput: the template refuses a message, or does not show the last answer after its
                own prompt, so that training on it would not teach to answer that prompt.
        """
        marked, marks = self._mark(messages)
        text, spans = self._show(marked, marks)
        if not self._has_generation:
            spans = self._turns(marked, marks, text)
        ids = self._encode(text, marks)
        mask = np.zeros(len(ids), np.uint8)
        for begin, end in spans:
            inside = self._encode(text[:end], marks)
            stop = _num_common(ids, inside)
            # A token across the end of a block belongs to it; transformers has it so.
            stop += stop < len(inside)
            mask[_num_common(ids, self._encode(text[:begin], marks)) : stop] = 1
        return np.array(ids, np.int32), mask

    def render_prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Ids of a conversation that waits for the assistant; `add_generation_prompt=True`."""
        marked, marks = self._mark(messages)
        text, _ = self._show(marked, marks, prompt=True)
        return np.array(self._encode(text, marks), np.int32)

    @functools.cached_property
    def turn(self) -> Turn:
        """How an answer is set, read off an example.

        Raises:
            BadInput: the template fails, drops the answer, or ends its turn by no special token.
        """
        asked, answered = _say("user", QUESTION), _say("assistant", ANSWER)
        marks = Marks(*NONCHARACTERS[: len(Marks._fields)])
        prompt, _ = self._show([asked], marks, prompt=True)
        text, _ = self._show([asked, answered], marks)
        at = text.rfind(ANSWER)
        found = self._special_re.search(text, at + len(ANSWER))
        if at < 0 or not found:
            why = "ends its turn by no special token" if at >= 0 else "is not shown"
            raise BadInput(f"chat template: an assistant's answer {why}; it shows {text[-80:]!r}")
        before = text[len(prompt) : at] if text.startswith(prompt) else ""
        return Turn(before, text[at + len(ANSWER) : found.start()], found[0])

    @property
    def end_id(self) -> int:
        """The token that ends an assistant's turn."""
        return self._special[self.turn.end]

    def strip(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """Text of generated ids without what the template writes around an answer by itself."""
        before = self._encoder.encode(self.turn.before, special=True)
        if before and list(ids[: len(before)]) == before:
            ids = ids[len(before) :]
        return decode(ids).removeprefix(self.turn.before).removesuffix(self.turn.after)

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        try:
            return _environment().from_string(self._source)
        except jinja2.TemplateError as error:
            raise BadInput(f"chat template: {type(error).__name__}: {error}") from error

    @functools.cached_property
    def _has_generation(self) -> bool:
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self._source))

    def _mark(self, messages: Sequence[Message]) -> tuple[list[Message], Marks]:
        """The messages with marks around the special tokens that they spell."""
        used = set().union(*(message["content"] for message in messages))
        free = [mark for mark in NONCHARACTERS if mark not in used]
        if len(free) < len(Marks._fields):
            raise BadInput(f"messages: they hold nearly all of the noncharacters {NONCHARACTERS}")
        marks = Marks(*free[: len(Marks._fields)])
        put = rf"{marks.token_begin}\g<0>{marks.token_end}"
        marked = [
            _say(message["role"], self._special_re.sub(put, message["content"]))
            for message in messages
        ]
        return marked, marks

    def _show(
        self, messages: Sequence[Message], marks: Marks, *, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The template's text, special tokens of the messages marked, and its generation blocks."""
        try:
            text = self._run(messages, marks, prompt)
        except Exception as error:
            number = self._find_cause(messages, marks, str(error))
            raise BadInput(
                f"message {number}, role {messages[number]['role']!r}: the model's chat template "
                f"refuses it: {error}"
            ) from error
        parts = re.split(f"([{marks.turn_begin}{marks.turn_end}])", text)
        text, spans, begin = "", [], 0
        for part in parts:
            if part == marks.turn_begin:
                begin = len(text)
            elif part == marks.turn_end:
                spans += [(begin, len(text))] if len(text) > begin else []
            else:
                text += part
        return text, spans

    def _run(self, messages: Sequence[Message], marks: Marks, prompt: bool) -> str:
        return self._template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=prompt,
            strftime_now=lambda form: (self._date or datetime.now()).strftime(form),
            **{BEGIN: marks.turn_begin, END: marks.turn_end},
            **self._variables,
        )

    def _find_cause(self, messages: Sequence[Message], marks: Marks, why: str) -> int:
        """The first message with which the template complains as it does of them all."""
        for number in range(1, len(messages)):
            try:
                self._run(messages[:number], marks, False)
            except Exception as error:
                if str(error) == why:
                    return number - 1
        return len(messages) - 1

    def _turns(self, messages: Sequence[Message], marks: Marks, text: str) -> list[Span]:
        """Where answers stand in `text`, of those that are shown as if they were the last."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, _ = self._show(messages[:index], marks, prompt=True)
            whole, _ = self._show(messages[: index + 1], marks)
            end = whole.rfind(self.turn.end, len(prompt)) + len(self.turn.end)
            is_shown = whole.startswith(prompt) and end > len(prompt)
            if is_shown and text.startswith(whole[:end]):
                spans.append((len(prompt), end))
            elif index == len(messages) - 1:
                at = _num_common(prompt, whole)
                raise BadInput(
                    f"message {index}: the model's chat template does not show an answer after its "
                    f"own prompt, which goes on {prompt[at:][:40]!r} where the answer has "
                    f"{whole[at:][:40]!r}; training needs a template that does, or one with "
                    "{% generation %} blocks"
                )
        return spans

    def _encode(self, text: str, marks: Marks) -> list[int]:
        """Ids of a marked text.

        A text without marks is encoded whole. Each stretch after a mark is encoded after a line
        end, which is taken off again: a tokenizer that puts a blank before a text must not put one
        in the middle of it.
        """
        begin, end = marks.token_begin, marks.token_end
        first, *rest = re.split(f"{begin}([^{begin}{end}]*){end}|[{begin}{end}]", text)
        ids = self._encoder.encode(first, special=True)
        for number, piece in enumerate(rest):
            if piece:
                ids += self._encode_inside(piece, special=number % 2 == 1)
        return ids

    def _encode_inside(self, piece: str, *, special: bool) -> list[int]:
        line = self._encoder.encode("\n", special=special)
        ids = self._encoder.encode("\n" + piece, special=special)
        if ids[: len(line)] == line:
            return ids[len(line) :]
        return self._encoder.encode(piece, special=special)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: prints a mark before and after what stands in it."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.Name(name, "load")]) for name in (BEGIN, END))
        return nodes.Scope([begin, *body, end]).set_lineno(line)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own escapes what HTML would take for its own.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _num_common(a: Sequence, b: Sequence) -> int:
    """How many items two sequences have in common at their beginnings."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))
