"""Chat rendering: the one place where messages become ids, for training, evaluation and chat.

A conversation is BOS, then for each message its role token, its content and <|end|>.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data.errors import BadInput
from data.tokenizers.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

Message = Mapping[str, str]


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Renders a conversation with the mask of what the assistant is to learn.

    Args:
        tokenizer: the run's tokenizer.
        messages: dicts of 'role' and 'content': a system message or none, then user and
            assistant in turn, the user first. No content is empty.

    Returns:
        ids_T: int32, BOS exactly once, at the start.
        mask_T: uint8, 1 on the content of assistant messages and on the <|end|> that closes
            them, 0 elsewhere: the model learns to answer and to stop, and nothing else.

    Raises:
        BadInput: the messages break the rules above; names the message by its index.
    """
    _check(messages)
    role_ids = _role_ids(tokenizer)
    contents = tokenizer.encode_batch([message["content"] for message in messages])
    ids, mask = [tokenizer.bos_id], [0]
    for message, content in zip(messages, contents, strict=True):
        supervised = int(message["role"] == "assistant")
        ids += [role_ids[message["role"]], *content, tokenizer.end_id]
        mask += [0] + [supervised] * (len(content) + 1)
    return np.array(ids, np.int32), np.array(mask, np.uint8)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    """Renders a conversation that waits for the assistant: it ends with the assistant token.

    It is, token for token, the beginning of `render` of the same messages with any answer added.

    Args:
        tokenizer: the run's tokenizer.
        messages: as for `render`; the last is from the user.

    Returns:
        ids_P: int32.

    Raises:
        BadInput: as `render`, or the last message is not from the user.
    """
    ids, _ = render(tokenizer, messages)
    last = len(messages) - 1
    if messages[last]["role"] != "user":
        raise BadInput(
            f"message {last}: role {messages[last]['role']!r}; a prompt must end with 'user'"
        )
    return np.append(ids, np.int32(tokenizer.assistant_id))


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
