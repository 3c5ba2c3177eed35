"""The files of an imported tokenizer: what they say, damage, copying, taking."""

import json
import os
import random
import shutil

import pytest

from data.errors import BadInput
from data.tokens.gguf_tokenizer import from_gguf
from data.tokens.imported import FILES, blame, copy_tokenizer, fingerprint, take
from data.tokens.tokenizer import load as load_tokenizer
from tests.data.test_gguf_tokenizer import (
    BEGIN,
    END,
    TEMPLATE,
    THINK,
    TURN,
    byte_metadata,
    write_json,
    write_llama,
    write_llama3,
)
from tests.data.test_tokenizer import write_unigram

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
    (llama3 / CONFIG).unlink()
    sizes = []
    for name in ("tokenizer.json", "tokenizer.model"):
        sizes.append(load_tokenizer(llama3).vocab_size)
        (llama3 / name).unlink()
    assert sizes == [389, 469]
    (llama3 / "vocab.json").write_text("{}")
    with pytest.raises(BadInput, match="llama3: holds no tokenizer; needed is .*save_pretrained"):
        load_tokenizer(llama3)


def test_older_files_say_the_same(llama3):
    """special_tokens_map.json and added_tokens.json, from before the configuration held it all."""
    (llama3 / CONFIG).unlink()
    plain = load_tokenizer(llama3)
    assert (plain.bos_id, plain.eos_id, plain.pad_id) == (None, None, 386)
    write_json(llama3, "special_tokens_map.json", {"bos_token": BEGIN, "eos_token": "<|new|>"})
    write_json(llama3, "added_tokens.json", {"<|new|>": 389})
    tokenizer = load_tokenizer(llama3)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (385, 389, 390)
    assert tokenizer.encode("<|new|>", special=True) == [389]
    assert 389 not in tokenizer.encode("<|new|>")
    write_json(llama3, "special_tokens_map.json", {"additional_special_tokens": ["<|new|>"]})
    assert load_tokenizer(llama3, 389).vocab_size == 389
    added = {389: {"content": "<|new|>", "special": False}}
    write_json(llama3, CONFIG, {"added_tokens_decoder": added, "pad_token": None})
    tokenizer = load_tokenizer(llama3)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, None, None)
    assert tokenizer.encode("<|new|>") == [389] and tokenizer.decode([389]) == "<|new|>"


def test_the_configuration_makes_a_token_special(llama3):
    assert load_tokenizer(llama3).encode(THINK) == [388]
    extra = {"extra_special_tokens": {"thought": THINK}}
    write_json(llama3, CONFIG, read(llama3 / CONFIG) | extra)
    tokenizer = load_tokenizer(llama3)
    assert 388 not in tokenizer.encode(THINK) and tokenizer.encode(THINK, special=True) == [388]


def test_the_longest_token_beside_a_model_is_found(tmp_path):
    added = {"469": {"content": "<a>"}, "470": {"content": "<a><b>"}}
    write_llama(tmp_path, added_tokens_decoder=added)
    assert load_tokenizer(tmp_path).encode("<a><b><a>") == [470, 469]


def test_chat_template(llama3):
    assert load_tokenizer(llama3).chat_template == TEMPLATE
    config = read(llama3 / CONFIG)
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    write_json(llama3, CONFIG, config | {"chat_template": named})
    assert load_tokenizer(llama3).chat_template == "b"
    (llama3 / "chat_template.jinja").write_text("\u00fc", encoding="utf-8")
    assert load_tokenizer(llama3).chat_template == "\u00fc"
    del config["chat_template"]
    write_json(llama3, CONFIG, config)
    (llama3 / "chat_template.jinja").unlink()
    assert load_tokenizer(llama3).chat_template is None


def test_a_model_with_fewer_rows(llama3, tmp_path):
    """Other tokens than special ones must have a row; more rows are padding."""
    assert load_tokenizer(llama3, 512).vocab_size == 389
    with pytest.raises(
        BadInput, match="tokenizer.json: has the id 388; must be below 388, the rows"
    ):
        load_tokenizer(llama3, 388)
    write_llama(tmp_path / "llama")
    with pytest.raises(
        BadInput, match="tokenizer.model: has the id 470; must be below 470, the rows"
    ):
        load_tokenizer(tmp_path / "llama", 470)
    added = {"469": {"content": TURN, "special": True}}
    write_llama(tmp_path / "llama", added_tokens_decoder=added)
    assert load_tokenizer(tmp_path / "llama", 469).vocab_size == 469


def test_a_special_token_beyond_the_rows_is_left_out(llama3):
    content = read(llama3 / "tokenizer.json")
    beyond = {**content["added_tokens"][0], "id": 389, "content": "<|image|>"}
    content["added_tokens"].append(beyond)
    write_json(llama3, "tokenizer.json", content)
    assert load_tokenizer(llama3).encode("<|image|>", special=True) == [389]
    fitted = load_tokenizer(llama3, 389)
    assert fitted.vocab_size == 389
    assert fitted.encode("<|image|>", special=True) == fitted.encode("<|image|>")
    assert fitted.encode(TURN, special=True) == [387]


def test_what_cannot_be_encoded(llama3, tmp_path):
    write_llama(tmp_path / "llama")
    for folder in (llama3, tmp_path / "llama"):
        with pytest.raises(BadInput, match=r"text 1: lone surrogate '\\ud800' at character 2"):
            load_tokenizer(folder).encode_batch(["fine", "ab\ud800c"])
    write_unigram(tmp_path / "unigram")
    change("tokenizer.json", ("model", "unk_id"), None)(tmp_path / "unigram")
    with pytest.raises(BadInput, match="cannot encode the text"):
        load_tokenizer(tmp_path / "unigram").encode("\u4e00")


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
        load_tokenizer(llama3)
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
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "content", "message"),
    [
        ({}, b"", "tokenizer.model: "),
        ({}, b"IQ== 0\nIg== 1\n", "tokenizer.model: holds the ranks of tiktoken.*save_pretrained"),
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
        load_tokenizer(tmp_path)


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
            tokenizer = load_tokenizer(tmp_path)
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
    ids = [load_tokenizer(path).encode(text, special=True) for path in (llama3, tmp_path / "out")]
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
    with pytest.raises(BadInput, match="llama3: holds no tokenizer; needed is tokenizer.json"):
        copy_tokenizer(llama3, tmp_path / "out")


# ------------------------------------------------------------ taking

TAKEN = ("Hello wörld, 12345 times!", "  a\n\n  b\tc ", "the dog's  end", "漢字 🙂")


def no_gguf(path, out):
    raise AssertionError(f"{path} is no GGUF")


@pytest.mark.parametrize(
    ("write", "name"), [(write_llama3, "tokenizer.json"), (write_llama, "tokenizer.model")]
)
def test_a_folder_and_its_file_give_the_same(tmp_path, write, name):
    write(tmp_path / "there")
    shutil.copytree(tmp_path / "there", tmp_path / "renamed")
    renamed = tmp_path / "renamed" / f"any.{name[-5:]}"
    (tmp_path / "renamed" / name).rename(renamed)
    wanted = load_tokenizer(tmp_path / "there")
    for place in (tmp_path / "there", tmp_path / "there" / name, renamed):
        take(place, tmp_path / f"from_{place.name}", no_gguf)
        found = load_tokenizer(tmp_path / f"from_{place.name}")
        assert found.encode_batch(TAKEN) == wanted.encode_batch(TAKEN)
        roles = [(t.bos_id, t.eos_id, t.pad_id, t.vocab_size) for t in (found, wanted)]
        assert roles[0] == roles[1]


def test_a_gguf_is_read_by_the_function_given(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF and so on")
    take(tmp_path / "m.gguf", tmp_path, lambda path, out: from_gguf(path, byte_metadata(), out))
    found = load_tokenizer(tmp_path)
    assert [found.decode(ids) for ids in found.encode_batch(TAKEN)] == list(TAKEN)


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_all_that_is_taken_is_in_the_fingerprint_and_nothing_else(llama3, name):
    place = llama3 / name if name else llama3
    before = fingerprint("start", place)
    (llama3 / "notes.txt").write_text("of no use")
    assert fingerprint("start", place) == before
    for read in ("tokenizer.json", "tokenizer_config.json"):
        kept = (llama3 / read).read_bytes()
        (llama3 / read).write_bytes(kept + b" ")
        assert fingerprint("start", place) != before, read
        (llama3 / read).write_bytes(kept)
    (llama3 / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint("start", place) != before
    (llama3 / "a.gguf").write_bytes(b"GGUF and more")
    assert fingerprint("start", llama3 / "a.gguf").keys() == {"a.gguf"}, "it stands alone"
    with pytest.raises(BadInput, match="^start=.*absent.json: no such file"):
        fingerprint("start", llama3 / "absent.json")


def test_what_cannot_be_taken_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(BadInput, match="tokenizer.path=.*absent: no such file"):
        take(tmp_path / "absent", tmp_path / "out", no_gguf)
    with pytest.raises(BadInput, match="tokenizer.path=.*empty: holds no tokenizer; needed is"):
        take(tmp_path / "empty", tmp_path / "out", no_gguf)
    take(tmp_path / "vocab.json", tmp_path / "out", no_gguf)
    with pytest.raises(BadInput, match="lacks 'model', as a vocab.json does; .*save_pretrained"):
        load_tokenizer(tmp_path / "out")
