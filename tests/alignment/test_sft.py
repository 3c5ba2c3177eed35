"""Demonstrations as rows: what is imitated, what pads, and what a refusal names."""

import numpy as np
import pytest

from alignment.sft import pack_demonstrations
from data.errors import BadInput
from data.quickstart.instruct import Example

SEQ_LEN = 40


class Letters:
    """Eight control tokens and the 256 bytes."""

    bos_id, eos_id, unk_id, system_id, user_id, assistant_id, end_id, pad_id = range(8)

    def encode(self, text):
        return [8 + byte for byte in text.encode()]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def make_example(number, messages):
    """Its reference is no demonstration, so that one is seen in place of the other."""
    return Example(f"x{number}", "user", messages, "gold", "exact", f"answer {number}")


def test_only_the_demonstration_is_imitated_and_the_rest_is_padding():
    question = {"role": "user", "content": "ask"}
    rows, _ = pack_demonstrations([make_example(1, (question,))], Letters(), SEQ_LEN)
    (row,) = rows
    taught = row["tokens"][row["mask"] == 1].tolist()
    assert taught == [*Letters().encode("answer 1"), Letters.end_id]
    unused = row["segments"] == 0
    assert unused.any() and not row["mask"][unused].any()
    np.testing.assert_array_equal(row["tokens"][unused], Letters.pad_id)


def test_a_refusal_names_the_conversation():
    twice = ({"role": "user", "content": "a"}, {"role": "system", "content": "b"})
    with pytest.raises(BadInput, match="conversation x7: "):
        pack_demonstrations([make_example(7, twice)], Letters(), SEQ_LEN)
