"""Gates: each drops what it is for and says why; edits edit; order and domains decide."""

import dataclasses
import hashlib

import numpy as np
import pytest

from configs import web
from data.curate import CurateConfig
from data.errors import BadInput
from data.gates import chain, classifier, contamination, rules, urls
from launch import schema

CONFIG = schema.to_dataclass(CurateConfig, web.get_config().data, "data").gates

PROSE = """\
The harbour was quiet that morning, and the old pilot had walked to the end of the stone pier.
Far out a single sail stood against the grey line of hills that closed the bay in the west.
He counted seven gulls on the railing, then eight, and wondered why none of them made a sound.
Nobody in the village could remember a winter with so little wind, nor so much fish to sell.
His daughter would be home by noon, carrying bread, letters and the usual complaints about mud.
Somewhere behind him a door opened, boots crossed the gravel, and a voice asked for directions.
"""
GERMAN = "Der alte Lotse ging am Morgen langsam bis zum Ende der Mole und sah auf das Meer. " * 5
CHINESE = "\u8fd9\u662f\u4e00\u4e2a\u5173\u4e8e\u6e2f\u53e3\u7684\u6545\u4e8b\u3002" * 30


def row(text, **changes):
    return {
        "id": "web/a:00000001",
        "source": "a",
        "domain": "web",
        "language": "",
        "url": "",
        "date": "",
        "text": text,
        "meta": "",
        "markup": "plain",
        **changes,
    }


def decide(rows, names, evaluation=None, **changes):
    gates = chain.Gates(dataclasses.replace(CONFIG, **changes), chain.expand(names), evaluation)
    return gates.decide([row(one) if isinstance(one, str) else one for one in rows])


def outcomes(batch):
    return list(zip(batch.why, batch.reason, batch.detail, strict=True))


def test_prose_passes_every_gate():
    batch = decide([PROSE], chain.NAMES)
    assert batch.why == [""]
    assert batch.texts == [PROSE]
    assert (batch.languages, batch.edits) == (["en"], [{}])


def test_texts_are_repaired_before_anything_is_asked_and_code_is_not_touched():
    broken = "It\u00e2\u20ac\u2122s here \r\n"
    batch = decide([broken, row(broken, markup="code", source="a.py")], ())
    assert batch.texts[0] == "It\u2019s here\n"
    assert batch.texts[1] == "It\u00e2\u20ac\u2122s here\n"


def test_a_text_of_nothing_is_empty():
    assert decide(["", " \n\t\n", "\ufeff"], ()).why == [chain.EMPTY] * 3


def test_length_counts_characters():
    batch = decide(
        ["x" * 9, "\u00e4" * 10, "x" * 30, "x" * 31], ("length",), min_chars=11, max_chars=31
    )
    assert outcomes(batch) == [
        ("length", "short", "10 characters"),
        ("", "", ""),
        ("", "", ""),
        ("length", "long", "32 characters"),
    ]


def test_blocked_hosts_and_their_subdomains_go(tmp_path):
    (tmp_path / "blocked").write_text("# spam\nbad.org\n\nWorse.example.com\n")
    pages = [
        "http://bad.org/x",
        "https://www.BAD.org",
        "http://notbad.org",
        "http://example.com",
        "",
    ]
    batch = decide(
        [row(PROSE, url=url) for url in pages], ("blocked",), blocked=f"{tmp_path}/blocked"
    )
    assert [(why, reason) for why, reason, _ in outcomes(batch)] == [
        ("blocked", "bad.org"),
        ("blocked", "bad.org"),
        ("", ""),
        ("", ""),
        ("", ""),
    ]


def test_what_opted_out_goes_by_url_or_hash(tmp_path):
    digest = hashlib.sha256(PROSE.strip().encode()).hexdigest()
    (tmp_path / "out").write_text(f"https://a.org/Page/\n{digest.upper()}\n")
    rows = [
        row(GERMAN, url="http://www.a.org/Page?utm_source=x#top"),
        row(GERMAN, url="http://a.org/page"),
        row("\n" + PROSE + "\n"),
        row(PROSE + "more"),
    ]
    batch = decide(rows, ("opt_out",), opt_out=f"{tmp_path}/out")
    assert [(why, reason) for why, reason, _ in outcomes(batch)] == [
        ("opt_out", "url"),
        ("", ""),
        ("opt_out", "hash"),
        ("", ""),
    ]


def test_languages_are_found_for_all_and_dropped_where_asked():
    batch = decide([PROSE, GERMAN], ())
    assert (batch.languages, batch.why) == (["en", "de"], ["", ""])
    assert (batch.language_score > 0.5).all()
    keep = dataclasses.replace(CONFIG.language, keep=("en",))
    batch = decide([PROSE, GERMAN], ("language",), language=keep)
    assert [outcome[:2] for outcome in outcomes(batch)] == [("", ""), ("language", "de")]


def test_code_has_the_language_that_its_reader_knows():
    code = row("def f():\n    return 1\n" * 9, markup="code", language="python", source="a.py")
    batch = decide([code], ("language", "generated"))
    assert (batch.languages, batch.why) == (["python"], [""])
    assert np.isnan(batch.language_score[0])


def test_generated_code_goes():
    rows = [
        row("x = 1\n", markup="code", source="lib.min.js"),
        row("x = 1\n", markup="code", source="a.py"),
    ]
    batch = decide(rows, ("generated",))
    assert batch.why == ["generated", ""]
    assert batch.reason[0]


@pytest.mark.parametrize("name", rules.RULES)
def test_a_rule_applies_only_where_it_is_named(name):
    text = "lorem ipsum {javascript} privacy policy # # # ... - x\n" * 3
    alone = decide([text], (name,)).why[0]
    assert alone in ("", name)
    assert decide([text], ()).why == [""]


def test_the_first_rule_that_fails_is_named_with_its_value():
    batch = decide(["five words are not fifty"], ("gopher",))
    assert outcomes(batch) == [("gopher_word_count", "", "5")]


def test_chinese_is_not_dropped_for_the_length_of_its_words():
    batch = decide([CHINESE], ("gopher_word_count", "gopher_mean_word_length"))
    assert (batch.languages, batch.why) == (["zh"], [""])


def test_listed_words_are_counted_against_their_limit(tmp_path):
    (tmp_path / "en.txt").write_text("mudlark\ngull of the bay\n")
    lists = dataclasses.replace(CONFIG.toxicity, lists=str(tmp_path), max_hits_per_word=0.05)
    texts = [PROSE, PROSE + "A mudlark. " * 12, PROSE + "A mudlark."]
    batch = decide(texts, ("toxic_words",), toxicity=lists)
    assert batch.why == ["", "toxic_words", ""]
    assert batch.detail[1].startswith("12 in ")
    assert decide(texts, (), toxicity=lists).why == ["", "", ""]


@pytest.fixture
def model(tmp_path):
    """Scores texts about harbours high."""
    good = [f"{line} harbour" for line in PROSE.splitlines() * 4]
    bad = [f"buy cheap pills number {i} now and here" for i in range(24)]
    labels = [True] * len(good) + [False] * len(bad)
    classifier.train(good + bad, labels, CONFIG.classifier, 3.0).save(tmp_path / "model")
    return str(tmp_path / "model")


def test_quality_is_scored_and_dropped_where_asked(model):
    quality = dataclasses.replace(CONFIG.quality, model=model, min_score=0.5)
    texts = [PROSE, "buy cheap pills now " * 20]
    batch = decide(texts, ("quality",), quality=quality)
    assert batch.why == ["", "quality"]
    assert batch.quality[0] > 0.5 > batch.quality[1]
    assert batch.detail[1] == f"{batch.quality[1]:.3f}"
    assert decide(texts, (), quality=quality).why == ["", ""]


def test_toxicity_has_limits_by_language(model):
    section = dataclasses.replace(
        CONFIG.toxicity, model=model, max_score=0.5, max_score_by_language={"de": 1.0}
    )
    batch = decide([PROSE, GERMAN], ("toxicity",), toxicity=section)
    assert batch.why == ["toxicity", ""]
    assert batch.reason[0] == "en"


def test_evaluation_texts_are_named(tmp_path):
    question = " ".join(PROSE.split()[20:40])
    contamination.build([("quiz", question)], 13).save(tmp_path / "index.npz")
    batch = decide([PROSE, GERMAN], ("contamination",), tmp_path / "index.npz")
    assert [outcome[:2] for outcome in outcomes(batch)] == [("contamination", "quiz"), ("", "")]
    assert decide([PROSE], (), tmp_path / "index.npz").why == [""]


def test_personal_data_is_masked_and_counted_in_what_is_dropped_too():
    text = f"{PROSE}Write to ann.lee@mail.example.org or call +1 212 555 0199.\n"
    batch = decide([text, "ann.lee@mail.example.org"], ("length", "pii"))
    assert batch.why == ["", "length"]
    assert not any("ann.lee" in one for one in batch.texts)
    assert batch.edits == [{"pii_mail": 1, "pii_phone": 1}, {"pii_mail": 1}]
    assert "ann.lee" in decide([text], ("pii",), pii=("phone",)).texts[0]


def test_the_first_gate_in_order_is_the_one_recorded():
    batch = decide(["kurz"], chain.NAMES)
    assert batch.why == ["length"]
    assert decide(["kurz"], [name for name in chain.NAMES if name != "length"]).why != ["length"]


def test_families_expand_to_their_rules_in_order():
    names = chain.expand(("pii", "gopher", "length", "gopher_word_count"))
    assert names == ("length", *(rule for rule in rules.RULES if rule.startswith("gopher")), "pii")
    assert {*chain.GOPHER, *chain.C4, *chain.FINEWEB} == set(rules.RULES)
    with pytest.raises(
        ValueError, match="gates: 'gophr' is not one of gopher, c4, fineweb, blocked"
    ):
        chain.expand(("gophr",))


def test_presets_name_gates():
    for preset in (
        *(chain.FOR_WEB, chain.FOR_TEXT, chain.FOR_PROSE),
        *(chain.FOR_LATEX, chain.FOR_CODE),
    ):
        assert set(preset) <= set(chain.NAMES)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("HTTP://WWW.A.org:80/x/?b=1&utm_medium=y&fbclid=z#top", "a.org/x?b=1"),
        ("https://a.org/x", "a.org/x"),
        ("a.org/X", "a.org/X"),
        ("http://a.org:8080/", "a.org:8080"),
        ("", ""),
        ("http://[", ""),
        ("http://a.org:port/", ""),
    ],
)
def test_urls_of_one_page_have_one_form(url, plain):
    assert urls.plain(url) == plain


def test_fingerprint_follows_the_files_that_gates_read(tmp_path, model):
    (tmp_path / "list").write_text("a.org\n")
    config = dataclasses.replace(
        CONFIG,
        blocked=f"{tmp_path}/list",
        quality=dataclasses.replace(CONFIG.quality, model=model),
    )
    before = chain.fingerprint(config)
    (tmp_path / "list").write_text("b.org\n")
    assert chain.fingerprint(config) != before
    before = chain.fingerprint(config)
    (tmp_path / "list").rename(tmp_path / "other")  # of lists of words the name is the language
    assert chain.fingerprint(dataclasses.replace(config, blocked=f"{tmp_path}/other")) != before
    with pytest.raises(BadInput, match="data.gates.opt_out: .*absent: No such file"):
        chain.fingerprint(dataclasses.replace(CONFIG, opt_out=f"{tmp_path}/absent"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_chars": 9, "max_chars": 8}, "min_chars, max_chars: 9 and 8"),
        ({"contamination_words": 0}, "contamination_words: 0 must be at least 1"),
        ({"pii": ("mail", "name")}, "pii: 'name' is not one of"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_a_list_that_is_missing_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"data\.gates\.blocked: .*absent: .*a text file is needed"):
        decide([PROSE], ("blocked",), blocked=f"{tmp_path}/absent")


@pytest.mark.parametrize(
    ("key", "lines", "message"),
    [
        (
            "blocked",
            "a.org\nhttp://b.org/page\n",
            "blocked: .*line 2: 'http://b.org/page' is no host",
        ),
        ("blocked", '{"url": "a.org"}\n', "line 1: .* is no host, such as example.org"),
        (
            "opt_out",
            "# hosts\nnonsense line here\n",
            "line 2: 'nonsense line here' is neither a URL",
        ),
        ("blocked", "org\n", "'org' is no host, such as example.org or"),
        ("opt_out", f"{'0' * 63}\n", "opt_out: .*is neither a URL nor 64 hexadecimal"),
    ],
)
def test_lines_of_lists_that_could_never_match_are_bad_input(tmp_path, key, lines, message):
    (tmp_path / "list").write_text(lines)
    with pytest.raises(BadInput, match=message):
        decide([PROSE], (key,), **{key: f"{tmp_path}/list"})


def test_hosts_are_blocked_in_whatever_form_they_are_listed(tmp_path):
    (tmp_path / "list").write_bytes(
        b"\xef\xbb\xbfHTTP://A.org/\r\n*.b.org\n.zip\n10.0.0.1\nxn--bcher-kva.example\n"
    )
    pages = ["https://a.org/1", "http://x.b.org", "http://x.zip", "http://10.0.0.1/x"]
    pages += ["http://b\u00fccher.example/", "http://c.org"]
    rows = [row(PROSE, url=url) for url in pages]
    batch = decide(rows, ("blocked",), blocked=f"{tmp_path}/list")
    assert batch.why == ["blocked"] * 5 + [""]


def test_gates_that_have_nothing_to_go_by_are_listed(model):
    names = ("blocked", "length", "quality", "toxicity", "contamination")
    assert chain.list_idle(names, CONFIG, False) == [
        "blocked",
        "quality",
        "toxicity",
        "contamination",
    ]
    quality = dataclasses.replace(CONFIG.quality, model=model)
    config = dataclasses.replace(CONFIG, quality=quality, blocked="list")
    assert chain.list_idle(names, config, True) == ["toxicity"]
    with pytest.raises(ValueError, match="min_score: 0.5 needs a model"):
        dataclasses.replace(CONFIG.quality, min_score=0.5)
    with pytest.raises(ValueError, match="l2: -1.0 must be at least 0"):
        dataclasses.replace(CONFIG.quality, l2=-1.0)
