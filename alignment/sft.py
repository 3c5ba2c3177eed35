"""Supervised fine-tuning: demonstrations rendered as chats, loss on the assistant's tokens only.

    seedbed sft --config=configs/quickstart.py

The training itself is `train.lm.lm_loss`: the mask in the rows is all that differs.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data.conversations import OwnSet
from data.errors import BadInput
from data.quickstart.instruct import Example
from data.tokens import chat
from data.tokens.shards import Record, pack_examples
from data.tokens.tokenizer import Tokenizer
from train.lm import LMConfig


@dataclasses.dataclass(frozen=True)
class SFTConfig(LMConfig):
    """Fine-tuning: next-token training, and whose conversations beside the built-in ones."""

    # Conversations of the user's own, by name; instruct.num_train=0 leaves the built-in ones out.
    data: Mapping[str, OwnSet] = dataclasses.field(default_factory=dict)


def pack_demonstrations(
    examples: Sequence[Example], tokenizer: Tokenizer, seq_len: int
) -> tuple[list[Record], dict[str, int]]:
    """Whole conversations, several a row, each seeing only itself.

    In a conversation of several turns every assistant turn is supervised that `chat.render` shows
    as it would show it last.

    Args:
      examples: what to imitate; the answer taught is `example.demonstration`.
      tokenizer: the run's tokenizer.
      seq_len: targets in a row.

    Returns:
      rows as `data.mixture.loader.lm_batch` takes them, and the counts of
      `data.tokens.shards.pack_examples`.

    Raises:
      BadInput: the chat format refuses a conversation.
    """
    rendered = (render(tokenizer, example) for example in examples)
    return pack_examples(rendered, seq_len, tokenizer.pad_id)


def render(tokenizer: Tokenizer, example: Example) -> tuple[np.ndarray, np.ndarray]:
    """`data.tokens.chat.render` of an example with its demonstration; what is refused is named."""
    answer = {"role": "assistant", "content": example.demonstration}
    try:
        return chat.render(tokenizer, (*example.messages, answer))
    except BadInput as error:
        raise BadInput(f"conversation {example.id}: {error}") from error
