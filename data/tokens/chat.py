"""Chat rendering: the one place where messages become ids, for training, evaluation and chat.

With a tokenizer of our own, or an imported one that was given `tokenizer.control`, a conversation
is BOS, then for each message its role token, its content and <|end|>. With any other imported
tokenizer it is what the model's own chat template makes of it (data/tokens/chat_template.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data.errors import BadInput
from data.tokens.chat_template import ChatTemplate
from data.tokens.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

Message = Mapping[str, str]


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Renders a conversation with the mask of what the assistant is to learn.

    Args:
        tokenizer: the run's tokenizer.
        messages: dicts of 'role' and 'content': a system message or none, then user and
            assistant in turn, the user first. No content is empty.

    Returns:
        ids_T: int32; in our own format BOS exactly once, at the start.
        mask_T: uint8, 1 on what the model writes in an assistant's turn and on the token that
            ends the turn, 0 elsewhere: the model learns to answer and to stop, and nothing else.

    Raises:
        BadInput: the messages break the rules above, or the model's template refuses one; names
            the message by its index. Or the tokenizer has no chat format.
    """
    _check(messages)
    if template := _template(tokenizer):
        return template.render(messages)
    role_ids = _role_ids(tokenizer)
    contents = tokenizer.encode_batch([message["content"] for message in messages])
    ids, mask = [tokenizer.bos_id], [0]
    for message, content in zip(messages, contents, strict=True):
        supervised = int(message["role"] == "assistant")
        ids += [role_ids[message["role"]], *content, tokenizer.end_id]
        mask += [0] + [supervised] * (len(content) + 1)
    return np.array(ids, np.int32), np.array(mask, np.uint8)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    """Renders a conversation that waits for the assistant.

    In our own format it is, token for token, the beginning of `render` of the same messages with
    any answer added. A template's prompt is too, unless a token spans its end and an answer's
    first characters.

    Args:
        tokenizer: the run's tokenizer.
        messages: as for `render`; the last is from the user.

    Returns:
        ids_P: int32.

    Raises:
        BadInput: as `render`, or the last message is not from the user.
    """
    _check(messages)
    last = len(messages) - 1
    if messages[last]["role"] != "user":
        raise BadInput(
            f"message {last}: role {messages[last]['role']!r}; a prompt must end with 'user'"
        )
    if template := _template(tokenizer):
        return template.render_prompt(messages)
    return np.append(render(tokenizer, messages)[0], np.int32(tokenizer.assistant_id))


def render_answer(tokenizer: Tokenizer, messages: Sequence[Message], text: str) -> np.ndarray:
    """Ids of an answer to `messages`, as the model is to write them after `render_prompt`.

    Args:
        tokenizer: the run's tokenizer.
        messages: as for `render_prompt`.
        text: the answer.

    Returns:
        ids_A: int32; the last is `end_id`.

    Raises:
        BadInput: as `render`, or a template's `{% generation %}` block leaves `end_id` out.
    """
    ids, mask = render(tokenizer, [*messages, {"role": "assistant", "content": text}])
    ends = np.flatnonzero((mask == 1) & (ids == end_id(tokenizer)))
    if not len(ends):
        raise BadInput(
            "chat template: its {% generation %} block leaves out the token that ends the "
            "assistant's turn, so that a model trained with it would not learn to stop"
        )
    stop = ends[-1] + 1
    start = np.max(np.flatnonzero(mask[:stop] == 0)) + 1
    return ids[start:stop]


def read_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of generated ids, without what a template writes around each answer by itself."""
    if template := _template(tokenizer):
        return template.strip(ids, tokenizer.decode)
    return tokenizer.decode(ids)


def end_id(tokenizer: Tokenizer) -> int:
    """The token that ends an assistant's turn, at which generation stops.

    Raises:
        BadInput: the tokenizer has no chat format, or its template no such token.
    """
    template = _template(tokenizer)
    return template.end_id if template else tokenizer.end_id


def check(tokenizer: Tokenizer) -> None:
    """Tries out the chat format, before anything is paid for.

    Raises:
        BadInput: nothing can be trained to chat with this tokenizer; the message says why.
    """
    render_answer(tokenizer, [{"role": "user", "content": "Is it so?"}], "It is.")


def _template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template to be used; None if the format is ours."""
    if tokenizer.assistant_id is not None:
        return None
    if tokenizer.template is None:
        raise BadInput(
            "this model's tokenizer has no chat template; to chat, tokenizer.control must name "
            "four tokens of its vocabulary that are not used otherwise, for system, user, "
            "assistant and the end of a turn"
        )
    return tokenizer.template


def _role_ids(tokenizer: Tokenizer) -> dict[str, int]:
    role_ids = (tokenizer.system_id, tokenizer.user_id, tokenizer.assistant_id)
    return dict(zip(ROLES, role_ids, strict=True))


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise BadInput("messages: the list is empty; at least one message is needed")
    allowed = ("system", "user")
    for index, message in enumerate(messages):
        if message.keys() != {"role", "content"}:
            raise BadInput(f"message {index}: keys {sorted(message)}; must be 'content' and 'role'")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise BadInput(f"message {index}: role {role!r}; must be one of {ROLES}")
        if role not in allowed:
            raise BadInput(f"message {index}: role {role!r}; here it must be one of {allowed}")
        if not isinstance(content, str) or not content:
            raise BadInput(f"message {index}: content {content!r}; must be text that is not empty")
        allowed = ("assistant",) if role == "user" else ("user",)
