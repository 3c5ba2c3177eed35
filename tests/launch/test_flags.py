"""Configuration files and overrides: what does not work is named with its line."""

import json

import pytest

from launch import cli
from launch.flags import FLAG_LINES, FLAGS, VERBS
from tests.launch.test_cli import QUICKSTART, ROOT, refusal, seedbed

WEB = f"--config={ROOT}/configs/web.py"
LANGUAGES = "data.gates.language.min_score_by_language"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:\n", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import nowhere\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("\n\ndef get_config():\n    return 1 / 0\n", "mine.py, line 4: ZeroDivisionError"),
        ("def get_config():\n    raise OSError('no disk')\n", "mine.py, line 2: OSError: no disk"),
        ("raise ValueError('two\\n  lines')\n", "mine.py, line 1: ValueError: two lines"),
        ("x = 1\n", "mine.py must have a function get_config()"),
        ("def get_config():\n    pass\n", "it gives NoneType"),
        ("def get_config():\n    return {'seed': 1}\n", "it gives dict"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
            "name: missing; the section needs name, stages",
        ),
        ("\0", "mine.py: "),
    ],
)
def test_a_config_file_that_does_not_work_is_named_with_its_line(text, words, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert words in refusal("run", f"--config={path}")


def test_flags_and_overrides_come_in_any_form_and_order():
    code, _, err = seedbed("run", "--config.seed", "x", "--config", f"{ROOT}/configs/quickstart.py")
    assert code == 2 and "--config.seed=x" in err
    assert "model.num_layers is 0" in refusal("run", "--config.model.num_layers=0", QUICKSTART)
    again = [QUICKSTART, "--config.seed=abc", "--config.seed=1", "--config.model.num_layers=0"]
    assert "seed=abc" in refusal("run", *again), "an earlier value is checked too"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.data.gates.min_chars=abc", ": must be a whole number\n"),
        ("--config.data.gates.min_chars=2.5", ": must be a whole number\n"),
        ("--config.data.heldout_fraction=abc", ": must be a number\n"),
        ("--config.data.dedup.urls=maybe", ": must be true or false\n"),
        (
            "--config.data.gates.gopher.max_top_ngram_chars=(1,2",
            ": must be a tuple such as (1, 2)\n",
        ),
        ("--json=5", ": must be true or false\n"),
        ("--workers=abc", ": must be a whole number, 0 or more\n"),
        ("--workers=-1", ": must be a whole number, 0 or more\n"),
        ("--run=", ": is empty; it must be --run=DIR\n"),
        ("--out=", ": is empty; it must be --out=DIR\n"),
        (WEB, ": given twice; give one of them\n"),
    ],
)
def test_a_value_that_does_not_fit_is_named_in_plain_words(flag, words):
    assert refusal("curate", WEB, flag) == f"seedbed: {flag}{words}"


@pytest.mark.parametrize("flag", ["nosuchflag", "prompt"])
def test_a_flag_that_a_verb_has_not_is_told_those_that_it_has(flag):
    line = refusal("curate", WEB, f"--{flag}=hi")
    allowed = ", ".join(f"--{name}" for name in FLAGS["curate"])
    assert line == f"seedbed: --{flag}: `seedbed curate` has no such flag; allowed: {allowed}\n"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mixture.domain_max_epochs=2", "a section; give --config.mixture.domain_max_epochs.NAME="),
        ("data.dedup=2", "a section; give one of ['num_bands'"),
        ("data.sources.a.path=x", "unknown key 'a'; config.data.sources is '' and has no keys"),
        ("seed.x=1", "unknown key 'x'; config.seed has no keys"),
        ("pretrain.loop.steps=1", "unknown key 'steps'; allowed here: ['num_steps'"),
        ("sft.optimizer.peak=1", "unknown key 'peak'; allowed here: ['kind', 'peak_lr'"),
        ("nothing=1", "unknown key 'nothing'; allowed here: ['name', 'stages'"),
    ],
)
def test_keys_that_are_not_there_or_take_no_value_are_refused(override, words):
    assert words in refusal("curate", WEB, f"--config.{override}")


def test_a_shared_key_that_no_stage_reads_is_refused():
    config, flag = f"--config={ROOT}/configs/quickstart.py", "--config.optimizer.weight_decay=0.2"
    base = "--config.stages=('curate', 'tokenizer', 'pretrain')"
    assert seedbed("config", config, flag)[0] == 0, "that of reward, dpo and ppo"
    assert refusal("config", config, flag, base) == (
        "seedbed: --config.optimizer.weight_decay: changes nothing; give "
        "--config.pretrain.optimizer.weight_decay, as each training stage has its own: "
        "pretrain.optimizer.weight_decay\n"
    )
    peak = refusal("config", config, "--config.optimizer.peak_lr=1e-3")
    own = ["pretrain", "sft", "reward", "dpo", "ppo"]
    own = sorted([*(f"{stage}.optimizer.peak_lr" for stage in own), "ppo.critic_optimizer.peak_lr"])
    assert sorted(peak.rstrip().rpartition(": ")[2].split(", ")) == own


def test_keys_that_a_config_file_leaves_to_their_defaults_can_be_given(tmp_path):
    changes = {
        "sft.optimizer.beta2": 0.99,
        "optimizer.eps": 1e-6,
        "loop.log_every": 7,
        "instruct.mix.copy": 2.0,
        "mesh.slices.data": 2,
        "mesh.weight_rules.F": ("fsdp", "tensor"),
        "mesh.activation_rules.E": (),
        "model.bias": ("qkv", "out"),
        "model.sinks": True,
        "data.sources.mine.path": "folder",
        "eval.sets": "text",
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    code, out, err = seedbed("config", f"--config={ROOT}/configs/quickstart.py", "--json", *flags)
    assert code == 0, err
    rows = {row["key"]: row for row in json.loads(out)["keys"]}
    given = {key: row["value"] for key, row in rows.items() if row["origin"] == "command line"}
    lists = {key: list(value) for key, value in changes.items() if isinstance(value, tuple)}
    assert given == changes | lists
    assert rows["pretrain.seq_len"]["origin"] == "config file"
    assert rows["dpo.beta"]["origin"] == "default" and rows["dpo.beta"]["value"] == 0.1
    assert "dpo.optimizer.beta2" not in rows and rows["optimizer.beta2"]["value"] == 0.95


def test_a_path_takes_the_place_of_named_sources():
    flags = ("--config.data.sources=folder", "--json")
    code, out, err = seedbed("config", f"--config={ROOT}/configs/quickstart.py", *flags)
    assert code == 0, err
    rows = {row["key"]: row["value"] for row in json.loads(out)["keys"]}
    assert rows["data.sources"] == "folder"


def test_every_key_says_what_it_means():
    code, out, _ = seedbed("config", f"--config={ROOT}/configs/quickstart.py", "--json")
    assert code == 0
    assert [row["key"] for row in json.loads(out)["keys"] if not row["about"]] == []


def test_an_argument_that_a_config_file_does_not_take_is_said_so(tmp_path):
    line = refusal("curate", f"{WEB}:foo")
    assert line.endswith(f"{ROOT}/configs/web.py takes no :ARG; give it as {ROOT}/configs/web.py\n")
    path = tmp_path / "mine.py"
    path.write_text("def get_config(*names):\n    return {'taken': names}\n")
    assert "it gives dict" in refusal("curate", f"--config={path}:a")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("form", [("{}", "--help"), ("help", "{}"), ("{}", WEB, "-h")])
def test_help_of_a_verb_is_of_its_flags_alone(verb, form):
    code, out, err = seedbed(*(word.format(verb) for word in form))
    assert (code, err) == (0, "") and f"\n  {VERBS[verb]}\n" in out
    assert out.startswith(f"usage: seedbed {verb} ")
    taken = FLAGS.get(verb, ("config", "run", "fresh", "json"))
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert shown == [FLAG_LINES[name][0] for name in taken]


def test_the_table_for_people_shows_rows_of_a_list_as_lines():
    mixture = [
        {"stage": "all", "domain": "docs", "language": "", "asked": 1 / 3, "tokens": 409600.0},
        {"stage": "", "domain": "code", "language": "en", "asked": 2 / 3, "tokens": 12.0},
    ]
    table = cli._table({"stages": {"pretrain": {"mixture": mixture, "secs": 1.5, "rest": []}}})
    assert table.splitlines() == [
        "stages",
        "  pretrain",
        "    mixture",
        "      stage all, domain docs, asked 0.3333, tokens 409,600",
        "      domain code, language en, asked 0.6667, tokens 12",
        f"    {'secs':24} 1.5",
        f"    {'rest':24} []",
    ]


def test_config_lists_own_prompts_by_their_keys():
    code, out, _ = seedbed("config", QUICKSTART, "--config.rollout.data.mine.path=x", "--json")
    rows = {row["key"]: row for row in json.loads(out)["keys"]}
    assert code == 0 and rows["rollout.data.mine.path"]["value"] == "x"
