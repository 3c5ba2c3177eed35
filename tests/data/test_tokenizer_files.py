"""The files of an imported tokenizer: what stands beside the vocabulary, damage, copying."""

import json
import os
import random
import shutil

import pytest

from data.errors import BadInput
from data.tokens import pretrained
from data.tokens.tokenizer_files import FILES, blame, copy_tokenizer
from tests.data.test_byte_level import (
    BEGIN,
    END,
    TEMPLATE,
    THINK,
    TURN,
    write_gpt2,
    write_json,
    write_llama3,
)
from tests.data.test_gguf_tokenizer import write_llama
from tests.data.test_pretrained import write_unigram

CONFIG = "tokenizer_config.json"


def read(path):
    return json.loads(path.read_bytes())


@pytest.fixture
def llama3(tmp_path):
    write_llama3(tmp_path / "llama3")
    return tmp_path / "llama3"


# ------------------------------------------------------------ beside the vocabulary


def test_the_first_of_the_vocabularies_is_taken(llama3):
    write_llama(llama3)
    write_gpt2(llama3)
    (llama3 / CONFIG).unlink()
    sizes = []
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json"):
        sizes.append(pretrained.load(llama3).vocab_size)
        (llama3 / name).unlink()
    assert sizes == [389, 469, 385]
    with pytest.raises(
        BadInput, match="llama3: holds no tokenizer; needed is one of tokenizer.json"
    ):
        pretrained.load(llama3)


def test_older_files_say_the_same(llama3):
    """special_tokens_map.json and added_tokens.json, from before the configuration held it all."""
    (llama3 / CONFIG).unlink()
    plain = pretrained.load(llama3)
    assert (plain.bos_id, plain.eos_id, plain.pad_id) == (None, None, 386)
    write_json(llama3, "special_tokens_map.json", {"bos_token": BEGIN, "eos_token": "<|new|>"})
    write_json(llama3, "added_tokens.json", {"<|new|>": 389})
    tokenizer = pretrained.load(llama3)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (385, 389, 390)
    assert tokenizer.encode("<|new|>", special=True) == [389]
    assert 389 not in tokenizer.encode("<|new|>")
    write_json(llama3, "special_tokens_map.json", {"additional_special_tokens": ["<|new|>"]})
    assert pretrained.load(llama3, 389).vocab_size == 389
    added = {389: {"content": "<|new|>", "special": False}}
    write_json(llama3, CONFIG, {"added_tokens_decoder": added, "pad_token": None})
    tokenizer = pretrained.load(llama3)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, None, None)
    assert tokenizer.encode("<|new|>") == [389] and tokenizer.decode([389]) == "<|new|>"


def test_the_configuration_makes_a_token_special(llama3):
    assert pretrained.load(llama3).encode(THINK) == [388]
    extra = {"extra_special_tokens": {"thought": THINK}}
    write_json(llama3, CONFIG, read(llama3 / CONFIG) | extra)
    tokenizer = pretrained.load(llama3)
    assert 388 not in tokenizer.encode(THINK) and tokenizer.encode(THINK, special=True) == [388]


def test_the_longest_token_beside_a_model_is_found(tmp_path):
    added = {"469": {"content": "<a>"}, "470": {"content": "<a><b>"}}
    write_llama(tmp_path, added_tokens_decoder=added)
    assert pretrained.load(tmp_path).encode("<a><b><a>") == [470, 469]


def test_chat_template(llama3):
    assert pretrained.load(llama3).chat_template == TEMPLATE
    config = read(llama3 / CONFIG)
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    write_json(llama3, CONFIG, config | {"chat_template": named})
    assert pretrained.load(llama3).chat_template == "b"
    (llama3 / "chat_template.jinja").write_text("\u00fc", encoding="utf-8")
    assert pretrained.load(llama3).chat_template == "\u00fc"
    del config["chat_template"]
    write_json(llama3, CONFIG, config)
    (llama3 / "chat_template.jinja").unlink()
    assert pretrained.load(llama3).chat_template is None


def test_a_model_with_fewer_rows(llama3, tmp_path):
    """Other tokens than special ones must have a row; more rows are padding."""
    assert pretrained.load(llama3, 512).vocab_size == 389
    with pytest.raises(
        BadInput, match="tokenizer.json: has the id 388; must be below 388, the rows"
    ):
        pretrained.load(llama3, 388)
    write_llama(tmp_path / "llama")
    with pytest.raises(
        BadInput, match="tokenizer.model: has the id 470; must be below 470, the rows"
    ):
        pretrained.load(tmp_path / "llama", 470)
    added = {"469": {"content": TURN, "special": True}}
    write_llama(tmp_path / "llama", added_tokens_decoder=added)
    assert pretrained.load(tmp_path / "llama", 469).vocab_size == 469


def test_a_special_token_beyond_the_rows_is_left_out(llama3):
    content = read(llama3 / "tokenizer.json")
    beyond = {**content["added_tokens"][0], "id": 389, "content": "<|image|>"}
    content["added_tokens"].append(beyond)
    write_json(llama3, "tokenizer.json", content)
    assert pretrained.load(llama3).encode("<|image|>", special=True) == [389]
    fitted = pretrained.load(llama3, 389)
    assert fitted.vocab_size == 389
    assert fitted.encode("<|image|>", special=True) == fitted.encode("<|image|>")
    assert fitted.encode(TURN, special=True) == [387]


def test_what_cannot_be_encoded(llama3, tmp_path):
    write_llama(tmp_path / "llama")
    for folder in (llama3, tmp_path / "llama"):
        with pytest.raises(BadInput, match=r"text 1: lone surrogate '\\ud800' at character 2"):
            pretrained.load(folder).encode_batch(["fine", "ab\ud800c"])
    write_unigram(tmp_path / "unigram")
    change("tokenizer.json", ("model", "unk_id"), None)(tmp_path / "unigram")
    with pytest.raises(BadInput, match="cannot encode the text"):
        pretrained.load(tmp_path / "unigram").encode("\u4e00")


# ------------------------------------------------------------ damage


def change(name, path, value):
    """A breaker that sets one value inside a JSON file."""

    def apply(folder):
        content = read(folder / name)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        write_json(folder, name, content)

    return apply


def put(name, content):
    """A breaker that writes a file's bytes."""
    return lambda folder: (folder / name).write_bytes(content)


ADDED = ("added_tokens", 0)
TWICE = b'{"model": {"vocab": {"a": 0, "b": 1, "a": 2}}}'
BROKEN = [
    (put("tokenizer.json", b'{"version": "1.0", "trunc'), "tokenizer.json: Unterminated string"),
    (put("tokenizer.json", b""), "tokenizer.json: Expecting value"),
    (put("tokenizer.json", b"\xff\xfe\x00"), "tokenizer.json: "),
    (put("tokenizer.json", b"[]"), "tokenizer.json: holds a list, must be an object"),
    (put("tokenizer.json", b"{}"), "tokenizer.json: lacks 'model'"),
    (put("tokenizer.json", b'{"model": {}}'), "tokenizer.json: lacks 'vocab'"),
    (put("tokenizer.json", b"[" * 100_000), "tokenizer.json: RecursionError"),
    (put("tokenizer.json", TWICE), "tokenizer.json: 'a' is there twice"),
    (change("tokenizer.json", ("model", "vocab", "a"), -1), "tokenizer.json: "),
    (change("tokenizer.json", ("model", "vocab", "a"), 2**32), "tokenizer.json: "),
    (
        change("tokenizer.json", ("model", "vocab", "a"), 2**31),
        "has the id 2147483648; must be below",
    ),
    (change("tokenizer.json", ("model", "vocab", "a"), 5), "gives one id to several tokens"),
    (change("tokenizer.json", ("model", "type"), "GPT"), "tokenizer.json: "),
    (change("tokenizer.json", ("model", "merges", 0), "x y z"), "tokenizer.json: "),
    (
        change("tokenizer.json", (*ADDED, "id"), 7),
        r"'<\|begin\|>' is said to have id 7, but has 385",
    ),
    (change("tokenizer.json", (*ADDED, "content"), "a"), "added token 'a' is said to have id 385"),
    (change("tokenizer.json", (*ADDED, "content"), "\ud800"), "tokenizer.json: "),
    (put(CONFIG, b"{"), "tokenizer_config.json: Expecting property name"),
    (change(CONFIG, ("bos_token",), "<nope>"), "bos_token='<nope>' is not in the vocabulary"),
    (change(CONFIG, ("bos_token",), 5), "tokenizer_config.json: token 5 must be text"),
    (change(CONFIG, ("chat_template",), 5), "chat_template is a int, must be text"),
    (change(CONFIG, ("added_tokens_decoder",), {"400": {"content": "x<"}}), "id 400, but has 389"),
    (
        change(CONFIG, ("added_tokens_decoder",), {"a": {"content": "x"}}),
        "tokenizer_config.json: inv",
    ),
    (put("special_tokens_map.json", b"3"), "special_tokens_map.json: holds a int"),
    (put("added_tokens.json", b'{"x": "y"}'), "added_tokens.json: TypeError"),
    (put("added_tokens.json", b'{"x": 389.0}'), "added_tokens.json: TypeError"),
    (put("chat_template.jinja", b"\xff"), "chat_template.jinja: 'utf-8' codec"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_a_damaged_file_is_one_error(llama3, damage, message):
    damage(llama3)
    with pytest.raises(BadInput, match=message) as caught:
        pretrained.load(llama3)
    assert str(caught.value).startswith(str(llama3)) and "\n" not in str(caught.value)


def test_a_panic_is_damage_and_an_interrupt_is_not():
    """The tokenizers library's panics are no Exception, and their class cannot be imported."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(BadInput, match="a.json: PanicException: slice index"), blame("a.json"):
        raise panic("slice index starts at 2 but ends at 0")
    with pytest.raises(KeyboardInterrupt), blame("a.json"):
        raise KeyboardInterrupt


def test_a_unigram_token_twice(tmp_path):
    write_unigram(tmp_path)
    change("tokenizer.json", ("model", "vocab", 9), ["a", -1.0])(tmp_path)
    with pytest.raises(BadInput, match="tokenizer.json: a token is in the vocabulary twice"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "content", "message"),
    [
        ({}, b"", "tokenizer.model: "),
        ({}, b"IQ== 0\nIg== 1\n", "tokenizer.model: RuntimeError"),
        (
            {"added_tokens_decoder": {"3": {"content": "zz"}}},
            None,
            "gives one id to several tokens",
        ),
        (
            {"added_tokens_decoder": {"3": {"content": "<s>"}}},
            None,
            "'<s>' is said to have id 3, but",
        ),
        (
            {"added_tokens_decoder": {"-1": {"content": "zz"}}},
            None,
            "tokenizer.model: has the id -1",
        ),
        (
            {"added_tokens_decoder": {str(1 << 40): {"content": "zz"}}},
            None,
            "must be below 8388608",
        ),
    ],
)
def test_a_damaged_sentencepiece_model(tmp_path, config, content, message):
    write_llama(tmp_path, **config)
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        pretrained.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "merges.txt: FileNotFoundError"),
        (put("merges.txt", b"#version: 0.2\nh e\nhe\n"), "vocab.json: "),
        (put("merges.txt", b"h qq\n"), "vocab.json: "),
        (put("vocab.json", b'{"a": 0, "a": 1}'), "vocab.json: 'a' is there twice"),
        (put("vocab.json", b'{"a": "b"}'), "vocab.json: "),
        (
            change(CONFIG, ("tokenizer_class",), "RobertaTokenizerFast"),
            "=RobertaTokenizer is not read",
        ),
    ],
)
def test_damaged_vocab_and_merges(tmp_path, damage, message):
    write_gpt2(tmp_path)
    damage(tmp_path)
    with pytest.raises(BadInput, match=message):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("write", [write_llama3, write_llama, write_unigram])
def test_random_damage_is_found_or_harmless(tmp_path, write):
    """Whatever bytes change: one BadInput, or ids below vocab_size for any text."""
    rng = random.Random(0)
    write(tmp_path)
    name = "tokenizer.model" if write is write_llama else "tokenizer.json"
    sound = (tmp_path / name).read_bytes()
    num_refused = 0
    for _ in range(60):
        broken = bytearray(sound[: rng.choice((len(sound), rng.randrange(len(sound))))])
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(broken) + 1)
            broken[place : place + 1] = bytes([rng.randrange(256)])
        (tmp_path / name).write_bytes(bytes(broken))
        try:
            tokenizer = pretrained.load(tmp_path)
            ids = tokenizer.encode("The \u00fcber-dog's 12 <s>" + END)
            assert all(0 <= i < tokenizer.vocab_size for i in ids)
            tokenizer.decode(ids)
        except BadInput:
            num_refused += 1
    assert num_refused > 10


# ------------------------------------------------------------ copying


def test_only_tokenizer_files_are_copied(llama3, tmp_path):
    for name in FILES:
        if not (llama3 / name).exists():
            (llama3 / name).write_bytes(os.urandom(50))
    for name in ("model.safetensors", "tokenization_custom.py", ".env"):
        (llama3 / name).write_bytes(b"x")
    out = tmp_path / "a" / "out"
    copy_tokenizer(llama3, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (out / name).read_bytes() == (llama3 / name).read_bytes()
    copy_tokenizer(out, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_a_copy_reads_the_same(llama3, tmp_path):
    copy_tokenizer(llama3, tmp_path / "out")
    text = f"{BEGIN}The dog{TURN}"
    ids = [pretrained.load(path).encode(text, special=True) for path in (llama3, tmp_path / "out")]
    assert ids[0] == ids[1] and ids[0][0] == 385


def test_links_are_followed_in_the_source_alone(llama3, tmp_path):
    """The Hub's cache consists of them; in the destination they are replaced."""
    blob = tmp_path / "blob"
    blob.write_text("{}")
    for target in (tmp_path / "nowhere", llama3):
        (llama3 / "added_tokens.json").symlink_to(target)
        with pytest.raises(BadInput, match="added_tokens.json: must be a file, or a link to one"):
            copy_tokenizer(llama3, tmp_path / "out")
        (llama3 / "added_tokens.json").unlink()
    assert not (tmp_path / "out").exists()
    (llama3 / "added_tokens.json").symlink_to("../blob")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CONFIG).symlink_to(blob)
    copy_tokenizer(llama3, tmp_path / "out")
    assert blob.read_text() == "{}"
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "added_tokens.json").read_text() == "{}"
    assert (tmp_path / "out" / CONFIG).read_bytes() == (llama3 / CONFIG).read_bytes()
    shutil.rmtree(llama3)
    llama3.mkdir()
    with pytest.raises(
        BadInput, match="llama3: holds no tokenizer; its files would be tokenizer.json"
    ):
        copy_tokenizer(llama3, tmp_path / "out")
