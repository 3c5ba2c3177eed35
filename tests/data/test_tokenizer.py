"""Imported tokenizers: the ids of transformers, exact round trips, special tokens out of reach."""

import gzip
import hashlib
import json
import random
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from data.tokens.tokenizer import load as load_tokenizer
from model.interop.gguf import open_gguf
from tests.data.test_gguf_tokenizer import (
    BEGIN,
    END,
    TEMPLATE,
    TURN,
    byte_metadata,
    llama_metadata,
    reload,
    write_gpt2,
    write_json,
    write_llama,
    write_llama3,
    write_qwen2,
)
from tests.model.test_gguf import real_file

MULTILINGUAL = Path(__file__).parents[3] / "shared" / "data" / "multilingual"

# Small vocabularies, trained on the multilingual set.
UNIGRAM = """
▁:-2.11 a:-3.03 e:-3.19 o:-3.31 .:-3.33 t:-3.49 s:-3.53 i:-3.62 m:-3.81 d:-3.86 u:-3.89 y:-4.00
p:-4.12 n:-4.14 k:-4.21 r:-4.22 l:-4.38 c:-4.38 h:-4.39 re:-4.43 ▁a:-4.46 ▁I:-4.50 w:-4.52
an:-4.55 ▁s:-4.57 g:-4.57 en:-4.70 ▁the:-4.74 ▁to:-4.78 b:-4.88 ?:-4.88 ing:-4.92 ▁you:-4.94
f:-5.04 ▁b:-5.07 in:-5.07 er:-5.07 ▁is:-5.08 v:-5.09 ar:-5.18 ed:-5.19 st:-5.20 ▁Tom:-5.22
le:-5.25 ,:-5.30 at:-5.31 ll:-5.33 ▁c:-5.34 ▁f:-5.36 on:-5.37 ▁do:-5.38 or:-5.38 ro:-5.43 es:-5.44
is:-5.47 it:-5.50 j:-5.55 ve:-5.55 ch:-5.56 la:-5.58 ▁he:-5.61 ▁in:-5.62 al:-5.62 n't:-5.64
▁me:-5.65 ▁be:-5.65 li:-5.65 ri:-5.67 ▁of:-5.67 e.:-5.70 ▁ha:-5.72 te:-5.74 us:-5.80 un:-5.81
nd:-5.82 lo:-5.82 z:-5.83 ver:-5.86 ▁The:-5.86 ra:-5.86 ▁di:-5.89 ':-5.90 ng:-5.90 th:-5.94
's:-5.97 ▁go:-6.01 ter:-6.05 ▁ma:-6.05 ▁that:-6.07 ▁Wh:-6.10 ▁He:-6.16 ▁we:-6.22 ▁de:-6.24
▁ho:-6.25 ▁ne:-6.25 ▁mo:-6.32 S:-6.35 ▁wa:-6.40 ▁You:-6.46 ould:-6.57 P:-6.58 ▁with:-6.64
▁like:-6.64 ":-6.70 x:-6.72 ▁this:-6.75 -:-6.77 !:-6.77 K:-6.84 ▁him:-6.91 ▁know:-6.99 q:-7.02
ight:-7.11 W:-7.21 1:-7.96 0:-7.96 ::-8.55 2:-8.69 9:-8.86 5:-8.86 3:-9.06 6:-9.64 ;:-9.64 4:-9.64
G:-11.14 F:-11.14 B:-11.14 N:-11.14 V:-11.14 X:-11.14 R:-11.14 I:-11.14 L:-11.14 T:-11.14 D:-11.14
O:-11.14 E:-11.14 A:-11.14 H:-11.14 C:-11.14 M:-11.14 Y:-11.14 U:-11.14 Q:-11.14 Z:-11.14 8:-11.14
&:-11.14 J:-11.14 7:-11.14
"""
WORDS = """
! " & ' , - . 0 1 2 3 4 5 6 7 8 9 : ; ? a b c d e f g h i j k l m n o p q r s t u v w x y z ##o
##r ##s ##e ##l ##m ##n ##t ##u ##i ##b ##a ##g ##k ##d ##y ##j ##v ##c ##p ##z ##h ##5 ##w ##f
##x ##q ##9 ##8 ##1 ##6 ##0 ##3 ##4 ##2 th ##er ##in ##ou to ##an ##at ##en the ##on you ##or ##ar
##ed ##ing ##es ##as is ##is ##ll tom ##it ##et in ##re wh ##om an do he ##al ##ve ##ot ##ay ha
##le ##id ##ak of ##ic ##ow me ##am be ##os it that ##im ##ent ##ch li on ##us we ##ld ##ad ##ut
##ere go my re sh ##ur ne st ##ir was ##ver ##ter ##ig ##un for se are ##ok this have ##ang ##od
##el ##ol ##ill ##ant es not ##il fr pr your
"""

TEXTS = (
    "The dog's 1234 friends, you'LL see!",
    "a  b   c\n\n  d\t\te\r\n",
    "Привет, мир: это не ты?",
    "नमस्ते दुनिया ไทย 日本語テキスト",
    "Cafe\u0301 \ufb01n \u2460 naïve Ünï",
    "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea x\x00y",
    "don't that's The TheThe streets",
)
SPELLED = "<s>hi</s><|turn|>you<|endoftext|><think>re [CLS]the[SEP]"


def write_unigram(folder):
    pairs = [piece.rpartition(":") for piece in UNIGRAM.split()]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, float(s)) for p, _, s in pairs)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
        | {"pad_token": "<pad>"},
    )


def write_wordpiece(folder):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: i for i, word in enumerate((*special, *WORDS.split()))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    write_json(folder, "tokenizer_config.json", config)


WRITERS = {
    "gpt2": write_gpt2,
    "qwen2": write_qwen2,
    "llama3": write_llama3,
    "unigram": write_unigram,
    "wordpiece": write_wordpiece,
    "llama": write_llama,
}

# What transformers 5.23 gives for TEXTS, then for SPELLED without and with special tokens.
FROZEN = {
    "gpt2": """
        367 335 70 374 220 378 288 81 72 270 67 82 11 301 6 43 43 259 68 68 0 / 64 220 274 383 280
        382 220 262 197 197 68 201 198 / 140 253 339 313 140 110 292 321 11 275 120 313 339 25 308
        235 321 294 275 121 292 308 224 348 30 / 261 101 261 106 261 116 305 235 261 97 305 229
        319 99 305 223 261 101 261 123 261 107 373 220 156 117 226 303 245 303 95 220 162 245 98
        162 250 105 164 103 252 159 225 228 159 224 255 159 224 117 159 225 230 / 34 64 69 68 136
        223 220 171 105 223 77 220 158 239 254 276 64 127 107 317 220 127 250 77 127 107 / 172 253
        239 102 158 222 235 172 253 239 100 220 172 253 229 102 172 253 229 103 220 87 188 88 / 67
        271 344 311 273 374 220 367 220 367 367 259 83 265 309 82 / 27 82 29 71 72 27 14 82 29 27
        91 83 356 77 91 29 88 268 27 91 270 67 78 69 83 68 87 83 91 29 27 83 71 258 74 29 265 220
        58 34 43 50 60 83 260 58 50 36 47 60 / 27 82 29 71 72 27 14 82 29 27 91 83 356 77 91 29 88
        268 384 27 83 71 258 74 29 265 220 58 34 43 50 60 83 260 58 50 36 47 60
    """,
    "llama": """
        345 324 393 405 385 378 52 53 54 55 289 386 383 272 391 385 410 298 405 437 437 358 379
        451 / 260 378 278 378 378 284 13 13 378 264 12 12 379 16 13 / 378 211 162 422 413 428 408
        414 410 378 416 413 422 61 378 464 414 409 378 411 408 378 414 426 406 / 378 227 167 171
        227 167 177 227 167 187 227 168 144 227 167 167 227 168 138 378 227 167 169 227 168 132
        227 167 171 227 167 194 227 167 178 227 167 193 378 227 188 135 227 187 154 227 187 165
        378 233 154 168 233 159 175 235 173 161 230 134 137 230 133 176 230 133 188 230 134 139 /
        378 445 380 401 379 207 132 378 242 175 132 384 378 229 148 163 280 380 198 178 308 378
        198 159 384 198 178 / 378 243 162 148 172 229 131 144 243 162 148 170 378 243 162 138 172
        243 162 138 173 378 446 3 394 / 264 273 405 382 360 405 385 345 345 402 263 354 265 302
        385 / 378 63 385 65 388 383 63 50 385 65 63 127 382 338 384 127 65 394 270 63 127 272 391
        381 401 382 379 446 382 127 65 470 349 378 94 445 437 424 96 382 263 94 424 432 436 96 / 1
        279 383 2 469 298 63 127 272 391 381 401 382 379 446 382 127 65 470 349 378 94 445 437 424
        96 382 263 94 424 432 436 96
    """,
    "llama3": """
        367 335 70 374 220 376 18 19 288 81 72 270 67 82 11 301 380 259 68 68 0 / 64 220 274 383
        280 382 220 262 197 197 68 201 198 / 140 253 339 313 140 110 292 321 11 275 120 313 339 25
        308 235 321 294 275 121 292 308 224 348 30 / 261 101 261 106 261 116 305 235 261 97 305
        229 319 99 305 223 261 101 261 123 261 107 373 220 156 117 226 303 245 303 95 220 162 245
        98 162 250 105 164 103 252 159 225 228 159 224 255 159 224 117 159 225 230 / 34 64 69 68
        136 223 220 171 105 223 77 220 158 239 254 276 64 127 107 317 220 127 250 77 127 107 / 172
        253 239 102 158 222 235 172 253 239 100 220 172 253 229 102 172 253 229 103 220 87 188 88
        / 67 271 344 311 273 374 220 367 220 367 367 259 83 265 309 82 / 27 82 29 71 72 27 14 82
        29 27 91 83 356 77 91 29 88 268 27 91 270 67 78 69 83 68 87 83 91 29 388 265 220 58 34 43
        50 60 83 260 58 50 36 47 60 / 27 82 29 71 72 27 14 82 29 387 88 268 386 388 265 220 58 34
        43 50 60 83 260 58 50 36 47 60
    """,
    "qwen2": """
        367 335 70 374 220 16 17 18 19 288 81 72 270 67 82 11 301 380 259 68 68 0 / 64 220 274 383
        280 382 220 262 197 197 68 201 198 / 140 253 339 313 140 110 292 321 11 275 120 313 339 25
        308 235 321 294 275 121 292 308 224 348 30 / 261 101 261 106 261 116 305 235 261 97 305
        229 319 99 305 223 261 101 261 123 261 107 373 220 156 117 226 303 245 303 95 220 162 245
        98 162 250 105 164 103 252 159 225 228 159 224 255 159 224 117 159 225 230 / 34 64 69 127
        102 220 171 105 223 77 220 158 239 254 276 64 127 107 317 220 127 250 77 127 107 / 172 253
        239 102 158 222 235 172 253 239 100 220 172 253 229 102 172 253 229 103 220 87 188 88 / 67
        271 344 311 273 374 220 367 220 367 367 259 83 265 309 82 / 27 82 29 71 72 27 14 82 29 27
        91 83 356 77 91 29 88 268 27 91 270 67 78 69 83 68 87 83 91 29 27 83 71 258 74 29 265 220
        58 34 43 50 60 83 260 58 50 36 47 60 / 27 82 29 71 72 27 14 82 29 27 91 83 356 77 91 29 88
        268 384 27 83 71 258 74 29 265 220 58 34 43 50 60 83 260 58 50 36 47 60
    """,
    "unigram": """
        81 53 28 87 3 117 120 123 126 51 70 29 12 9 47 35 84 135 135 27 5 5 110 / 23 3 37 3 3 50 2
        3 3 12 2 5 2 / 3 2 47 3 2 119 3 2 3 2 3 2 33 / 3 2 3 2 3 2 3 2 / 3 142 4 36 2 51 38 3 117
        3 16 4 2 60 3 2 16 2 / 3 2 3 2 3 107 2 14 / 53 66 91 87 81 81 136 21 5 3 44 22 5 8 9 / 3 2
        9 2 21 10 1 2 8 13 18 16 2 14 6 13 2 29 12 6 36 74 107 8 2 86 38 17 2 22 3 2 142 135 99 2
        86 5 2 99 139 103 2 / 3 2 9 2 21 10 1 3 2 8 13 18 16 2 14 6 13 2 29 12 6 36 74 107 8 2 86
        38 17 2 22 3 2 142 135 99 2 86 5 2 99 139 103 2
    """,
    "wordpiece": """
        93 113 62 7 42 12 84 82 83 171 59 92 64 52 8 95 7 35 54 157 53 4 / 24 25 26 27 28 / 1 8 1
        21 1 1 1 23 / 1 1 1 1 1 1 1 / 26 61 74 53 1 1 37 61 59 116 44 56 59 / 1 1 47 65 / 113 56 7
        43 131 7 42 93 93 57 71 53 149 109 107 52 / 1 42 1 31 59 1 1 42 1 1 1 43 147 56 1 1 95 1 1
        28 56 64 50 74 57 53 75 57 1 1 1 85 87 63 1 145 1 26 54 52 1 93 1 157 69 1 / 1 42 1 31 59
        1 1 42 1 1 1 43 147 56 1 1 95 1 1 28 56 64 50 74 57 53 75 57 1 1 1 85 87 63 1 145 2 93 3
    """,
}
SPECIAL = {
    "gpt2": [END],
    "qwen2": [END],
    "llama3": [BEGIN, END, TURN],
    "llama": ["<unk>", "<s>", "</s>", TURN],
}
# vocab_size, bos, eos and pad of transformers, and the digest of its ids of `multilingual()`.
FROZEN_FACTS = {
    "gpt2": (385, 384, 384, None, "c40dbeedbbc19173"),
    "qwen2": (385, None, 384, 384, "8d7c46a96808c266"),
    "llama3": (389, 385, 387, 386, "4da55d43bb94879d"),
    "unigram": (152, None, 1, 0, "fbf36d9b7801e6a7"),
    "wordpiece": (174, None, None, 0, "1aada92f30e6e72c"),
    "llama": (471, 1, 2, None, "f54bcce5802eec3e"),
}
# Of each kind: how a text comes back. WordPiece drops blanks and case, and neither it nor this
# unigram model has a way to write a character that it has not seen.
RETURNS = {
    "gpt2": lambda text: text,
    "llama3": lambda text: text,
    "qwen2": lambda text: unicodedata.normalize("NFC", text),
    "llama": lambda text: text.replace("\u2581", " "),
}


def frozen_rows(name):
    return [[int(i) for i in row.split()] for row in FROZEN[name].split("/")]


def digest(rows):
    flat = [i for row in rows for i in (*row, -1)]
    return hashlib.sha256(np.asarray(flat, "<i4").tobytes()).hexdigest()[:16]


def multilingual():
    """About ten thousand texts of 112 languages, and the start of 388 translations of one text."""

    def read(name, key, max_chars):
        with gzip.open(MULTILINGUAL / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line)[key][:max_chars].strip() for line in lines]

    sentences = read("tatoeba/tatoeba_a.jsonl.gz", "text", 10**6)[::7]
    return sentences + read("udhr2/udhr2.jsonl.gz", "text", 3000)


def random_texts(num_texts):
    rng = random.Random(0)
    blanks = (" ", "   ", "\n", "\t", "\r\n", "\x00", "\u3000", "\u2581", "<s>", END, "e\u0301")
    scripts = ((0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x52F), (0x900, 0x97F), (0x3040, 0x9FFF))

    def part():
        first, last = rng.choice((*scripts, (0x1F300, 0x1FAFF)))
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randrange(5)))

    return [
        "".join(rng.choice((rng.choice(blanks), part())) for _ in range(rng.randrange(20)))
        for _ in range(num_texts)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for name, write in WRITERS.items():
        write(root / name)
    return root


@pytest.fixture(params=WRITERS)
def name(request):
    return request.param


def test_ids_are_those_of_transformers(folders, name):
    tokenizer = load_tokenizer(folders / name)
    *rows, plain, special = frozen_rows(name)
    assert tokenizer.encode_batch(TEXTS) == rows
    assert [tokenizer.encode(text) for text in TEXTS] == rows
    assert tokenizer.encode(SPELLED) == plain
    assert tokenizer.encode(SPELLED, special=True) == special
    assert tokenizer.encode("") == [] and tokenizer.encode_batch([]) == []
    found = tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    assert found == FROZEN_FACTS[name][:4]


@pytest.mark.real
@pytest.mark.skipif(not MULTILINGUAL.is_dir(), reason="the multilingual set is not beside here")
def test_ids_of_the_multilingual_set_are_those_of_transformers(folders, name):
    texts = multilingual()
    tokenizer = load_tokenizer(folders / name)
    rows = tokenizer.encode_batch(texts)
    assert digest(rows) == FROZEN_FACTS[name][4]
    if name in RETURNS:
        lossy = [
            text for text, row in zip(texts, rows, strict=True) if tokenizer.decode(row) != text
        ]
        expected = [text for text in texts if RETURNS[name](text) != text]
        assert lossy == expected


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("llama", llama_metadata()),
        ("gpt2", byte_metadata("gpt-2")),
        ("qwen2", byte_metadata("qwen2")),
        ("llama3", byte_metadata("llama-bpe")),
    ],
)
def test_a_gguf_gives_the_ids_of_what_it_was_made_from(tmp_path, name, metadata):
    tokenizer = reload(metadata, tmp_path)
    *rows, plain, special = frozen_rows(name)
    assert tokenizer.encode_batch(TEXTS) == rows
    if name == "llama3":  # the others' files have fewer special tokens, or more
        assert tokenizer.encode(SPELLED) == plain
        assert tokenizer.encode(SPELLED, special=True) == special
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == FROZEN_FACTS[name][1:4]
        assert tokenizer.chat_template == TEMPLATE


@pytest.mark.real
@pytest.mark.skipif(not MULTILINGUAL.is_dir(), reason="the multilingual set is not beside here")
def test_the_tokenizer_inside_a_real_gguf(tmp_path):
    """Gemma 3: transformers gives these ids from the GGUF and from Gemma's own tokenizer.json."""
    _, metadata = open_gguf(real_file(tmp_path))
    tokenizer = reload(metadata, tmp_path / "tokenizer")
    texts = multilingual()
    rows = tokenizer.encode_batch(texts)
    assert digest(rows) == "a2bb23c11f176533"
    assert [tokenizer.decode(row) for row in rows] == texts
    found = tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    assert found == (262144, 2, 1, 0)
    assert tokenizer.encode("<start_of_turn>", special=True) == [105]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not MULTILINGUAL.is_dir(), reason="the multilingual set is not beside here")
def test_transformers_agrees_while_we_watch(folders, name):
    auto = pytest.importorskip("transformers", reason="transformers is not installed").AutoTokenizer
    theirs = auto.from_pretrained(folders / name)
    ours = load_tokenizer(folders / name)
    # Theirs does not treat spaces at the start as SentencePiece does, nor gives them back.
    texts = [*multilingual(), *TEXTS, *([] if name == "llama" else [SPELLED, *random_texts(300)])]
    ids = theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch(texts, special=True) == ids
    assert theirs.batch_decode(ids, skip_special_tokens=True) == [ours.decode(row) for row in ids]


@pytest.mark.parametrize("name", RETURNS)
def test_a_text_comes_back(folders, name):
    tokenizer = load_tokenizer(folders / name)
    texts = [*TEXTS, *random_texts(300), " a", "  a  ", "\u2581", "\n\n \n"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == RETURNS[name](text)
        assert tokenizer.decode(np.asarray(ids, np.int32)) == RETURNS[name](text)


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_token_cannot_be_typed(folders, name):
    """Not even where it stands in a text; asked for, it can, and then it is not shown again."""
    tokenizer = load_tokenizer(folders / name)
    texts = [SPELLED, *SPECIAL[name], *random_texts(100)]
    found = {i for row in tokenizer.encode_batch(texts) for i in row}
    for token in SPECIAL[name]:
        (i,) = tokenizer.encode(token, special=True)
        assert i not in found and tokenizer.decode([i]) == ""
        assert tokenizer.decode(tokenizer.encode(token)) == token


def test_both_ways_at_once(folders):
    """Special tokens stay apart in many threads, though the library's switch is one."""
    tokenizer = load_tokenizer(folders / "llama3")
    *_, plain, special = frozen_rows("llama3")
    wrong = []

    def work(is_special):
        for _ in range(200):
            if tokenizer.encode(SPELLED, special=is_special) != (special if is_special else plain):
                wrong.append(is_special)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sentencepiece_is_the_reference(folders):
    """Where transformers 5 differs from it: spaces at the start, and runs of them by score."""
    reference = SentencePieceProcessor(model_file=str(folders / "llama" / "tokenizer.model"))
    texts = [" ", "  a", " the  dog", *random_texts(200)]
    assert load_tokenizer(folders / "llama").encode_batch(texts) == reference.encode(texts)


def test_ids_without_a_token_show_nothing(folders):
    tokenizer = load_tokenizer(folders / "gpt2")
    assert tokenizer.decode([367, -1, 10**9, tokenizer.vocab_size, 335]) == "The do"
    assert tokenizer.decode([]) == ""
