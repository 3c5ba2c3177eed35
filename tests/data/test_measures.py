"""Measures of the gates, each against numbers worked by hand or another implementation."""

import numpy as np
import pytest
from scipy import stats

from data.gates import language
from data.readers import latex
from data.scoring import measures


@pytest.mark.parametrize("seed", range(20))
def test_auc_is_mann_and_whitneys_statistic(seed):
    source = np.random.default_rng(seed)
    scores, labels = source.integers(0, 8, 60) / 8, source.random(60) < 0.3
    above, below = scores[labels], scores[~labels]
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    assert measures.auc(scores, labels) == pytest.approx(np.mean(pairs), abs=1e-12)
    theirs = stats.mannwhitneyu(above, below).statistic / len(pairs)
    assert measures.auc(scores, labels) == pytest.approx(theirs, abs=1e-12)


def test_auc_by_hand():
    # Of the four pairs 3 > 1, 3 > 2 and 2 > 1 count, and 2 = 2 for a half.
    assert measures.auc([1, 2, 2, 3], [False, False, True, True]) == 0.875
    assert measures.auc([1, 2], [True, True]) is None
    assert measures.auc([], []) is None


@pytest.mark.parametrize("seed", range(10))
def test_spearman_agrees_with_scipy(seed):
    source = np.random.default_rng(seed)
    left, right = source.integers(0, 9, 50), source.integers(0, 2, 50)
    theirs = stats.spearmanr(left, right).statistic
    assert measures.spearman(left, right) == pytest.approx(theirs, abs=1e-12)
    assert measures.spearman(left, np.ones(50)) is None


def spans_of(text, *parts):
    return text, [(kind, text.index(part), text.index(part) + len(part)) for kind, part in parts]


MAIL, PHONE = "EMAIL_ADDRESS", "PHONE_NUMBER"
PII_ROWS = [
    spans_of("Write to ann@site.org today.", (MAIL, "ann@site.org"), ("PERSON", "ann")),
    spans_of("It was sent by bob@site.org to us.", (MAIL, "by bob@site.org")),  # 12 of 15 shared
    spans_of(
        "It was sent by eve@site.org to us.", (MAIL, "sent by eve@site.org to us")
    ),  # 12 of 26
    spans_of("Nobody says that joe@site.org is one."),
    spans_of("My number is hard to find: twelve.", (PHONE, "twelve")),
]


def test_pii_by_hand():
    found = measures.measure_pii(PII_ROWS, ("mail", "phone", "ip"))
    half = {"precision": 0.5, "recall": 2 / 3, "f1": pytest.approx(4 / 7)}
    exact = {"precision": 0.25, "recall": 1 / 3, "f1": pytest.approx(2 / 7)}
    assert found["texts"] == 5 and found["others"] == {"PERSON": 1}
    assert found["kinds"]["mail"] == {"gold": 3, "found": 4, "overlapping": half, "exact": exact}
    missed = {"precision": None, "recall": 0, "f1": None}
    assert found["kinds"]["phone"] == {
        "gold": 1, "found": 0, "overlapping": missed, "exact": missed
    }  # fmt: skip
    nothing = {"precision": None, "recall": None, "f1": None}
    assert found["kinds"]["ip"]["exact"] == nothing
    assert found["kinds"]["all"]["overlapping"]["recall"] == 0.5
    assert found["kinds"]["all"]["gold"] == 4


def test_pii_that_is_not_looked_for_is_not_missed():
    found = measures.measure_pii(PII_ROWS, ("phone",))
    assert list(found["kinds"]) == ["all", "phone"] and found["kinds"]["all"]["found"] == 0
    assert found["others"] == {MAIL: 3, "PERSON": 1}


def test_language_by_hand(monkeypatch):
    said = {"Eins": "de", "Zwei": "nl", "One two three four five": "en", "Hi": "de", "Um": "pt"}
    monkeypatch.setattr(language, "languages", lambda: ("de", "en", "nl", "pt"))
    monkeypatch.setattr(language, "detect", lambda texts: ([said[text] for text in texts], None))
    rows = [("deu", "Eins"), ("deu", "Zwei"), ("eng", "One two three four five"), ("eng", "Hi")]
    rows += [("eng", "Hi"), ("por", "Um"), ("tlh", "nuqneH"), ("tlh", "nuq")]
    found = measures.measure_language(rows)
    assert found["unknown"] == {"tlh": 2} and found["languages"] == 3 and found["texts"] == 6
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["macro"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    assert found["longer"]["20"] == {"texts": 1, "accuracy": 1, "macro": 1}
    assert found["longer"]["50"] == {"texts": 0, "accuracy": None, "macro": None}
    assert found["worst"][:2] == [["en", pytest.approx(1 / 3), 3], ["de", 0.5, 2]]
    assert found["confusions"] == [["en", "de", 2], ["de", "nl", 1]]


def test_tweets_by_hand():
    found = measures.measure_tweets(
        ["hate", "offensive", "neither", "neither"], [0.9, 0.4, 0.4, 0.1]
    )
    assert found["auc"] == {"toxic": 0.875, "hate": 1.0, "offensive": 0.75}


def test_hatecheck_by_hand():
    cases = [
        ("slur_h", True, "women"),
        ("slur_h", True, "women"),
        ("ident_nh", False, "women"),
        ("ident_nh", False, "Muslims"),
        ("ident_nh", False, "Muslims"),
        ("object_nh", False, ""),
    ]
    flagged = [True, False, False, True, False, True]
    found = measures.measure_hatecheck(cases, [0.9, 0.2, 0.1, 0.8, 0.2, 0.9], flagged)
    assert found["accuracy"] == 0.5
    assert found["macro"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert found["auc"] == pytest.approx((3.5 + 1.5) / 8)
    assert found["functionalities"]["ident_nh"] == {
        "cases": 3, "hateful": False, "accuracy": pytest.approx(2 / 3)
    }  # fmt: skip
    assert found["functionalities"]["slur_h"]["hateful"] is True
    rates = {whom: (row["cases"], row["rate"]) for whom, row in found["false_alarms"].items()}
    assert rates == {"all": (4, 0.5), "nobody": (1, 1.0), "Muslims": (2, 0.5), "women": (1, 0.0)}


def test_words_and_votes_by_hand():
    found = measures.measure_words(["hate", "neither", "hate"], [1, 0, 1], [0, 0, 1])
    assert found == {
        "hate": {"texts": 2, "hit": 1.0, "too_many": 0.5},
        "neither": {"texts": 1, "hit": 0.0, "too_many": 0.0},
    }
    votes = [(1, True), (1, False), (0, False), (0, True)]
    found = measures.measure_votes(votes, [0.9, 0.2, 0.4, 0.1])
    assert found["all"]["auc"] == 0.75 and found["all"]["good"] == 2
    assert found["all"]["spearman"] == pytest.approx(1 / np.sqrt(5))
    assert found["agreed"] == {"texts": 2, "good": 1, "auc": 1.0, "spearman": pytest.approx(1)}


LEFT = {
    "comments": "One.\n  % so it was before",
    "labels": r"see \label{here}",
    "preambles": r"\usepackage{tikz}",
    "headings": r"\subsection{One}",
    "bibliographies": r"\bibitem{knuth}",
    "drawings": r"\begin{tikzpicture}",
    "index_entries": r"word\index{word}",
    "footnotes": r"\footnote{No.}",
    "gaps": "one\n\n\n\ntwo",
    "odd_dollars": "from $x to y",
}


def test_what_latex_leaves_is_seen(monkeypatch):
    assert measures.measure_latex(["\\section{One}\n\n\n\n100\\% of $x$ % no\n"])[
        "left"
    ] == dict.fromkeys(LEFT, 0)
    monkeypatch.setattr(latex, "to_text", str)
    for name, text in LEFT.items():
        left = measures.measure_latex([text, text, "Of \\$5 $x$ are\n100% gone."])["left"]
        assert left == dict.fromkeys(LEFT, 0) | {name: 2}
    assert measures.measure_latex(["abc", "de"])["chars"] == 5
