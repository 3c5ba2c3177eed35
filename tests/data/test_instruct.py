"""Instruction data: right references, disjoint splits, determinism, and the user's own file."""

import ast
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data.quickstart import instruct, instruct_facts, instruct_refusals, instruct_tasks
from data.tokens import chat

MOST_WORDS = 40  # of a conversation; well under 60 tokens
FILLER_TOLERANCE = 0.03

CONFIG = instruct.InstructConfig(
    seed=0,
    num_train=12_000,
    num_heldout_per_kind=25,
    filler_rate=0.25,
    mix=dict.fromkeys(instruct.KINDS, 1.0),
    date="2026-01-01",
)


@pytest.fixture(scope="module")
def splits():
    return instruct.build(CONFIG)


def asked(example):
    return example.messages[-1]["content"]


def of_kind(examples, *kinds):
    return [example for example in examples if example.kind in kinds]


def numbers(example):
    return [int(number) for number in re.findall(r"\d+", asked(example))]


def items(text):
    """The list in a question, read as Python."""
    return ast.literal_eval(re.search(r"\[.*\]", text)[0])


def everything(splits):
    return splits["train"] + splits["heldout"]


def test_counts_and_ids(splits):
    assert len(splits["train"]) == CONFIG.num_train
    shares = Counter(example.kind for example in splits["train"])
    assert set(shares) == set(instruct.KINDS)
    assert max(shares.values()) - min(shares.values()) <= 1
    heldout = Counter(example.kind for example in splits["heldout"])
    assert set(heldout) == set(instruct.KINDS)
    assert max(heldout.values()) == CONFIG.num_heldout_per_kind
    assert min(heldout.values()) >= 10
    ids = [example.id for example in everything(splits)]
    assert len(set(ids)) == len(ids)


def test_training_order_is_mixed(splits):
    neighbours = zip(splits["train"], splits["train"][1:], strict=False)
    assert sum(a.kind == b.kind for a, b in neighbours) < 0.1 * CONFIG.num_train


@pytest.mark.parametrize("other_seed", [0, 1])
def test_no_heldout_prompt_was_trained_on(splits, other_seed):
    other = instruct.build(dataclasses.replace(CONFIG, seed=other_seed))
    trained = {example.messages[-1]["content"] for example in splits["train"]}
    heldout = [e for e in other["heldout"] if e.kind != "follow_up"]
    assert not [asked(example) for example in heldout if asked(example) in trained]


def test_heldout_contents_were_not_trained_on_in_any_phrasing(splits):
    contents = {
        "add": lambda e: tuple(sorted(numbers(e))),
        "subtract": lambda e: tuple(sorted(numbers(e))),
        "compare": lambda e: tuple(sorted(numbers(e))),
        "maximum": lambda e: tuple(sorted(numbers(e))),
        "minimum": lambda e: tuple(sorted(numbers(e))),
        "copy": lambda e: e.reference,
        "enclose": lambda e: e.reference[1:-1],
        "json_pair": lambda e: e.reference,
        "join": lambda e: e.reference,
        "reverse_list": lambda e: e.reference,
        "reverse_word": lambda e: e.reference,
        "first": lambda e: tuple(items(asked(e))),
        "last": lambda e: tuple(items(asked(e))),
        "count": lambda e: tuple(items(asked(e))),
        "follow_up": lambda e: (*items(e.messages[0]["content"]), e.reference),
    }
    for kind, content in contents.items():
        trained = {content(example) for example in of_kind(splits["train"], kind)}
        kept = {content(example) for example in of_kind(splits["heldout"], kind)}
        assert len(kept) == len(of_kind(splits["heldout"], kind)), kind
        assert not trained & kept, kind


def test_numeric_references_are_right(splits):
    solve = {
        "maximum": max,
        "minimum": min,
        "compare": max,
        "add": sum,
        "subtract": lambda pair: max(pair) - min(pair),
    }
    for example in of_kind(everything(splits), *solve):
        assert example.reference == str(solve[example.kind](numbers(example))), example


def test_list_references_are_right(splits):
    places = {name: place for place, name in enumerate(instruct_tasks.ORDINALS)}
    for example in of_kind(everything(splits), "first", "last", "count", "nth", "reverse_list"):
        listed = items(asked(example))
        if example.kind == "nth":
            wanted = listed[places[re.search("|".join(places), asked(example).split("[")[0])[0]]]
        else:
            wanted = {
                "first": listed[0],
                "last": listed[-1],
                "count": str(len(listed)),
                "reverse_list": repr(listed[::-1]),
            }[example.kind]
        assert example.reference == wanted, example


def test_other_task_references_are_right(splits):
    for example in of_kind(everything(splits), "json_pair"):
        ((field, value),) = json.loads(example.reference).items()
        assert f"{field}='{value}'" in asked(example)
    for example in of_kind(everything(splits), "lookup"):
        table = ast.literal_eval(re.search(r"\{.*\}", asked(example))[0])
        name = re.search(r"'(\w+)'", re.sub(r"\{.*\}", "", asked(example)))[1]
        assert example.reference == str(table[name]), example
    for example in of_kind(everything(splits), "contains"):
        word = re.search(r"'(\w+)'", re.sub(r"\[.*\]", "", asked(example)))[1]
        present = word in items(asked(example))
        assert example.reference == ("yes" if present else "no"), example
    for example in of_kind(everything(splits), "copy"):
        assert f"'{example.reference}'" in asked(example)
    for example in of_kind(everything(splits), "reverse_word"):
        assert f"'{example.reference[::-1]}'" in asked(example)
    for example in of_kind(everything(splits), "join"):
        marks = dict(instruct_tasks.SEPARATORS)
        mark = marks[re.search("|".join(marks), re.sub(r"\[.*\]", "", asked(example)))[0]]
        assert example.reference == mark.join(items(asked(example))), example
    for example in of_kind(everything(splits), "enclose"):
        sides = {name: (left, right) for name, left, right in instruct_tasks.ENCLOSURES}
        left, right = sides[re.search("|".join(sides), asked(example))[0]]
        inside = re.search(r"'(.*)'", asked(example))[1]
        assert example.reference == left + inside + right, example
    for example in of_kind(everything(splits), "follow_up"):
        first_turn, _, question = (message["content"] for message in example.messages)
        listed = items(first_turn)
        wanted = {"first": listed[0], "second": listed[1], "last": listed[-1]}
        word = re.search("first|second|last|number", question)[0]
        assert example.reference == wanted.get(word, str(len(listed))), example


def test_a_prompt_has_one_answer(splits):
    answers = {}
    for example in everything(splits):
        key = json.dumps(example.messages)
        assert answers.setdefault(key, example.reference) == example.reference, example


def test_facts_are_true():
    facts = instruct_facts.read_facts(instruct.NUM_FUNCTIONS)
    assert len(facts) == instruct.NUM_FUNCTIONS
    for fact in facts:
        function = getattr(importlib.import_module(fact.module), fact.name)
        parameters = fact.call.removeprefix(fact.full_name)
        for name in inspect.signature(function).parameters:
            assert re.search(rf"\b{name}\b", parameters), fact
        docstring = " ".join(inspect.getdoc(function).split())
        assert docstring.startswith(fact.summary[:-1]), fact


def test_heldout_facts_were_taught_in_other_phrasings(splits):
    for kind in instruct.FACT_KINDS:
        trained = of_kind(splits["train"], kind)
        prompts = {asked(example) for example in trained}
        taught = {example.reference for example in trained}
        for example in of_kind(splits["heldout"], kind):
            assert asked(example) not in prompts
            assert example.reference in taught


def test_unknown_names_do_not_exist_and_heldout_ones_are_new(splits):
    name_of = re.compile(r"called (\S+)\.$")
    names = {
        split: {name_of.search(example.reference)[1] for example in of_kind(examples, "unknown")}
        for split, examples in splits.items()
    }
    assert not names["train"] & names["heldout"]
    misplaced = 0
    real = {fact.name for fact in instruct_facts.read_facts(instruct.NUM_FUNCTIONS)}
    for name in names["train"] | names["heldout"]:
        module, _, function = name.rpartition(".")
        if module:
            assert not hasattr(importlib.import_module(module), function), name
        else:
            assert function not in real
        misplaced += function in real
    assert misplaced > 0.2 * sum(map(len, names.values()))


def test_unknown_and_real_names_share_their_phrasings(splits):
    def phrasings(*kinds):
        return {
            re.sub(r"[\w.]+\.\w+", "NAME", asked(example)).rstrip(".?")
            for example in of_kind(splits["train"], *kinds)
            if re.search(r"\w\.\w", asked(example))
        }

    assert phrasings("unknown") == phrasings("signature", "summary")


def test_unsafe_and_benign_share_phrasings_and_hold_some_out(splits):
    for kind in ("unsafe", "benign"):
        used = {}
        for split, examples in splits.items():
            used[split] = {
                phrasing
                for phrasing in instruct_refusals.PHRASINGS
                for example in of_kind(examples, kind)
                if re.fullmatch(re.escape(phrasing).replace(r"\{x\}", ".*"), asked(example))
            }
        assert len(used["train"]) + len(used["heldout"]) == len(instruct_refusals.PHRASINGS)
        assert not used["train"] & used["heldout"]


def test_demonstrations_are_references_with_filler_at_the_stated_rate(splits):
    train = splits["train"]
    wrapped = [example for example in train if example.demonstration != example.reference]
    assert abs(len(wrapped) / len(train) - CONFIG.filler_rate) < FILLER_TOLERANCE
    for example in wrapped:
        assert example.reference in example.demonstration
        opened = example.demonstration.startswith(instruct.OPENERS)
        closed = example.demonstration.endswith(instruct.CLOSERS)
        assert opened or closed
        assert not (opened and example.kind in ("unsafe", "unknown"))
    bare = instruct.build(dataclasses.replace(CONFIG, filler_rate=0.0))
    assert all(example.demonstration == example.reference for example in bare["train"])


def test_conversations_are_short_and_render(splits):
    class Letters:
        bos_id, system_id, user_id, assistant_id, end_id = 1, 4, 5, 6, 7

        def encode_batch(self, texts):
            return [[8 + byte for byte in text.encode()] for text in texts]

    for example in everything(splits):
        words = [re.findall(r"\w+|\S", message["content"]) for message in example.messages]
        assert sum(map(len, words)) <= MOST_WORDS, example
        answer = {"role": "assistant", "content": example.demonstration}
        _, mask = chat.render(Letters(), [*example.messages, answer])
        assert mask.sum() > len(example.demonstration)
        assert chat.render_prompt(Letters(), example.messages)[-1] == Letters.assistant_id


def test_kinds_of_weight_zero_are_left_out():
    mix = dict.fromkeys(instruct.KINDS, 0.0) | {"copy": 3.0, "add": 1.0}
    small = instruct.build(dataclasses.replace(CONFIG, num_train=401, mix=mix))
    assert Counter(example.kind for example in small["train"]) == {"copy": 301, "add": 100}
    assert {example.kind for example in small["heldout"]} == {"copy", "add"}


def test_nothing_is_held_out_where_nothing_is_to_be_trained_on():
    assert instruct.build(dataclasses.replace(CONFIG, num_train=0)) == {"train": [], "heldout": []}


def test_same_in_every_process():
    program = (
        "import hashlib; from tests.data.test_instruct import CONFIG;"
        "from data.quickstart import instruct;"
        "print(hashlib.sha256(repr(instruct.build(CONFIG)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    digests.add(hashlib.sha256(repr(instruct.build(CONFIG)).encode()).hexdigest() + "\n")
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_train": -1}, "instruct.num_train is -1"),
        ({"filler_rate": 1.5}, "instruct.filler_rate is 1.5"),
        ({"mix": {"copie": 1.0}}, "instruct.mix is"),
        ({"mix": CONFIG.mix | {"copy": -1.0}}, "instruct.mix.copy is -1.0"),
        ({"mix": dict.fromkeys(instruct.KINDS, 0.0)}, "at least one weight above 0"),
    ],
)
def test_config_names_the_bad_key(change, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        dataclasses.replace(CONFIG, **change)


def test_more_words_than_the_manual_has():
    with pytest.raises(ValueError, match="num_words: 1000000"):
        instruct_tasks.common_words(10**6)
