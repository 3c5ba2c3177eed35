"""A tokenizer's export: the ids of training, in texts and in the chat format."""

import json

import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer as FastTokenizer

from data.tokens import chat
from data.tokens.tokenizer import load as load_tokenizer
from data.tokens.tokenizer import load_for_training, load_own
from data.tokens.trainer import FILES, TokenizerConfig, train
from launch.verbs import export_tokenizer
from launch.verbs.export_tokenizer import SAMPLES, write_control
from tests import chat_oracle
from tests.test_token_layouts import BYTE_LEVEL, CONTROL, PIECES, write_byte_level, write_pieces

ANSWER = {"role": "assistant", "content": "It is so."}
TALKS = [
    chat_oracle.talk("Wait!", "No.", 'Say "yes" or', system="Be <|ast|> plain."),
    chat_oracle.talk("one\n\ntwo {{ x }}", "{% y %}", "'"),
]


def write(folder, family, **keys):
    if family in BYTE_LEVEL:
        write_byte_level(folder, *BYTE_LEVEL[family])
    else:
        write_pieces(folder, *PIECES[family], CONTROL)
        model = ModelProto.FromString((folder / "tokenizer.model").read_bytes())
        model.normalizer_spec.remove_extra_whitespaces = False  # as in all that are published
        (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | keys))


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        *((family, {}) for family in (*BYTE_LEVEL, *PIECES)),
        *(("llama2", {"tokenizer_class": "LlamaTokenizer", "legacy": x}) for x in (True, False)),
        ("gpt2", {"extra_special_tokens": ["<|endoftext|>"]}),
        ("gpt2", {"additional_special_tokens": ["<|endoftext|>"], "extra_special_tokens": []}),
    ],
)
def test_a_message_has_the_ids_of_training(tmp_path, family, keys):
    write(tmp_path, family, **keys)
    model = load_for_training(tmp_path, 2000, CONTROL)
    num = len([text for text in SAMPLES if text])
    checked = write_control(model, CONTROL, tmp_path)
    assert checked == f"chat template as trained, same ids for {num} of {num} messages"
    found = load_tokenizer(tmp_path)
    assert found.assistant_id is None, "it talks by the template"
    for talk in TALKS:
        expected = chat.render_prompt(model, talk)
        assert found.template.render_prompt(talk).tolist() == expected.tolist()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # transformers reads the second list alone where there is one.
    listed = config.get("extra_special_tokens") or config["additional_special_tokens"]
    assert set(CONTROL) <= set(listed) and len(set(listed)) == len(listed)


@pytest.mark.parametrize("kind", FILES)
def test_a_tokenizer_trained_here_has_the_same_ids_elsewhere(tmp_path, kind):
    (tmp_path / "run").mkdir()
    texts = [*SAMPLES, *(" ".join(f"{a}{b}ing" for b in "xyz") for a in "abcdefgh")] * 3
    config = TokenizerConfig(
        {"unigram": 390, "wordpiece": 530}.get(kind, 440), 10**6, 16, 0.99, kind=kind
    )
    train(texts, config, tmp_path / "run" / FILES[kind])
    checked = export_tokenizer.write(tmp_path / "run", "own", "sft", tmp_path / "out")
    # Of a run of one letter, two ways to cut are equally good to a unigram.
    num = 7 if kind == "unigram" else 8
    assert checked == f"tokenizer.json made of {FILES[kind]}, same ids for {num} of 8 samples"
    ours, theirs = load_own(tmp_path / "run"), load_tokenizer(tmp_path / "out")
    texts = [text for text in texts if "aaa" not in text]
    assert theirs.encode_batch(texts) == ours.encode_batch(texts)
    assert (theirs.bos_id, theirs.eos_id, theirs.pad_id, theirs.adds_bos) == (1, 2, 0, True)
    for talk in TALKS:
        found, wanted = (np.stack(chat.render(t, [*talk, ANSWER])) for t in (theirs, ours))
        assert found.tolist() == wanted.tolist(), "ids and mask"
    fast = FastTokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert fast.encode("a").ids == [1, *ours.encode("a")], "a model sees BOS first"
