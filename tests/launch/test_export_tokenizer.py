"""An export's chat format where `tokenizer.control` gave it: the ids that its model was taught."""

import json

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data.tokens import chat
from data.tokens.tokenizer import load as load_tokenizer
from data.tokens.tokenizer import load_for_training
from launch.verbs.export_tokenizer import SAMPLES, write_control
from tests import chat_oracle
from tests.test_token_layouts import BYTE_LEVEL, CONTROL, PIECES, write_byte_level, write_pieces

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
