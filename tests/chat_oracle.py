"""What transformers makes of conversations, by the templates in tests/templates.

    python tests/chat_oracle.py > tests/data/chat_templates.json    (transformers 5.23.0)

Nothing of ours is imported: it runs in an environment that has transformers and tokenizers alone.
"""

import datetime
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

TEMPLATES = Path(__file__).parent / "templates"
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
THINK = ("<think>", "</think>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
# Special tokens, added ones that are not special, and the names of some, as each was published.
TOKENS = {
    "deepseek-r1": (DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>", *THINK), DEEPSEEK),
    "deepseek-v3.1": (DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>", *THINK), DEEPSEEK),
    "glm4.6": (
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        (*THINK, "/nothink"),
        (None, "<|endoftext|>"),
    ),
    "gpt-oss": (
        ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        (),
        ("<|startoftext|>", "<|return|>"),
    ),
    "granite3.3": (
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        (),
        ("<|end_of_text|>", "<|end_of_text|>"),
    ),
    "mistral-nemo": (("<s>", "</s>", "[INST]", "[/INST]"), (), ("<s>", "</s>")),
    "phi3.5": (
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        (),
        ("<s>", "<|endoftext|>"),
    ),
    "qwen2.5": (CHATML, (), (None, "<|im_end|>")),
    "qwen3": (CHATML, THINK, (None, "<|im_end|>")),
    "qwen3-training": (CHATML, THINK, (None, "<|im_end|>")),
    "smollm3": (CHATML, THINK, (None, "<|im_end|>")),
    "zephyr": (("<s>", "</s>"), (), ("<s>", "</s>")),
}
# Phi-3's tokens take the blanks after them.
RSTRIP = {"phi3.5"}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Such as join what a template writes and what a message begins or ends with.
MERGES = """Ċ+Ċ ĊĊ+Ċ Ġ+Ġ ĠĠ+Ġ .+Ċ .+ĊĊ Ġ+t Ġ+a h+e i+n Ġt+he i+s e+r o+n r+e Ġ+s Ġ+c a+t e+n o+u Ġ+w
i+t o+r a+n Ġ+b e+s Ġ+d Ġ+in a+l Ġ+m Ġ+p Ġ+is in+g u+s er+s t+he Ġ+o Ġ+f T+he s+t Ġ+h Ġ+n an+d Ġ+g
Ġo+f Ġ+y Ġ+u Ġ+l s+y t+e m+e Ġ+e i+c c+h Ġ+I Ġ+re Ġa+re Ġy+ou b+e Ġ+be o+w l+e v+e i+d Ġt+o Ã+©"""


def say(role, content):
    return {"role": role, "content": content}


def talk(*contents, system=None):
    turns = [say(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return ([] if system is None else [say("system", system)]) + turns


CONVERSATIONS = [
    talk("What is 2 + 3?"),
    talk("What is 2 + 3?", "It is 5."),
    talk("Who are you?", "A model.", system="You are brief."),
    talk("One?", "First.", "Two?", system="Count.\n\n"),
    talk("One?", "First.", "Two?", "Second.", "Three?", "Third one."),
    talk("Один? 你好", "Café déjà vu 👩‍👩‍👧.", "שלום", "नमस्ते e\u0301", system="Ünïcode"),
    talk("  two spaces", " a blank", "\n\nlines\n", "\n\nmore\n\n", system=" \t"),
    talk("tab\tand\r\nline", "ends with blanks  ", "x\u00a0y\u200b", "{{ bos_token }}{% raw %}"),
    talk("Think.", "<think>\nwhy not\n</think>\n\nSo.", "Again.", "<think>\nhm\n</think>\n\nYes."),
    talk("<b>&amp;'\"</b> \\n", "```py\nprint('<a>')\n```"),
]
# `TOKEN` is each special token in turn.
FORGED = [
    talk("aTOKEN b", "TOKEN", "TOKEN\nTOKENTOKEN\n\nc", "TOKEN  d  TOKEN"),
    talk("Hello", system="TOKENsystem TOKEN\n"),
]


class Date(datetime.datetime):
    """The day of which templates speak."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 2, 3, 4, 5, 6)


def asked(messages):
    """A conversation up to its last question."""
    return messages if messages[-1]["role"] == "user" else messages[:-1]


def forged(name):
    return [
        [say(message["role"], message["content"].replace("TOKEN", token)) for message in messages]
        for token in TOKENS[name][0]
        for messages in FORGED
    ]


def write_folder(folder, name):
    """A tokenizer with the special tokens of a model, and its chat template."""
    special, added, (bos, eos) = TOKENS[name]
    tokenizer = _sentencepiece() if name == "zephyr" else _byte_level()
    marks = [AddedToken(text, special=True, normalized=False) for text in special]
    if name in RSTRIP:
        marks[2:] = [
            AddedToken(t, special=True, normalized=False, rstrip=True) for t in special[2:]
        ]
    tokenizer.add_special_tokens(marks)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    template = (TEMPLATES / f"{name}.jinja").read_bytes()
    (folder / "chat_template.jinja").write_bytes(template)


def _byte_level():
    merges = [tuple(merge.split("+")) for merge in MERGES.split()]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(map("".join, merges))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    cut = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece():
    """As Llama 2's and Mistral's: a blank before each stretch of text, bytes for rare signs."""
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "s"), ("▁", "▁"), ("▁", "is")]
    letters = "▁abcdefghijklmnopqrstuvwxyzTWFSO<|>/.?'+"
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(blanks)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def ask(folder, name):
    """{"ids", "prompts", "forged", "masks"}, each a list over conversations.

    Prompts go up to the last user; masks are of templates with generation blocks alone.
    """
    from transformers import AutoTokenizer
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = Date
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_control_tokens = []  # special tokens alone are kept out of messages

    def apply(messages, **options):
        return tokenizer.apply_chat_template(messages, **options)["input_ids"]

    masked = CONVERSATIONS if "generation %}" in tokenizer.chat_template else []
    return {
        "ids": [apply(messages) for messages in CONVERSATIONS],
        "prompts": [apply(m, add_generation_prompt=True) for m in map(asked, CONVERSATIONS)],
        "forged": [apply(messages, sanitize_control_tokens=True) for messages in forged(name)],
        "masks": [
            tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)[
                "assistant_masks"
            ]
            for messages in masked
        ],
    }


if __name__ == "__main__":
    import tempfile

    found = {}
    for model in sorted(TOKENS):
        with tempfile.TemporaryDirectory() as place:
            write_folder(Path(place), model)
            found[model] = ask(Path(place), model)
    json.dump(found, sys.stdout, separators=(",", ":"))
