"""Supervised fine-tuning: demonstrations rendered as chats, loss on the assistant's tokens only.

    seedbed sft --config=configs/quickstart.py

The training itself is `train.lm.train_lm`: the mask in the rows is all that differs.
"""

from collections.abc import Sequence

from data import chat
from data.instruct import Example
from data.shards import Record, pack_examples
from data.tokenizers.tokenizer import Tokenizer


def pack_demonstrations(
    examples: Sequence[Example], tokenizer: Tokenizer, seq_len: int
) -> tuple[list[Record], dict[str, int]]:
    """Whole conversations, several a row, each seeing only itself.

    In a conversation of several turns every assistant turn is supervised.

    Args:
      examples: what to imitate; the answer taught is `example.demonstration`.
      tokenizer: the run's tokenizer.
      seq_len: targets in a row.

    Returns:
      rows as `data.loader.lm_batch` takes them, and the counts of `data.shards.pack_examples`.

    Raises:
      BadInput: no assistant token at all would be trained on.
    """
    answered = (
        (*example.messages, {"role": "assistant", "content": example.demonstration})
        for example in examples
    )
    return pack_examples(
        (chat.render(tokenizer, messages) for messages in answered), seq_len, tokenizer.pad_id
    )
