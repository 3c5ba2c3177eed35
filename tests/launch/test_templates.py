"""An imported model that has a chat template: taught, asked and exported in its own format."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import tune as tune_config
from data.quickstart import instruct
from data.tokens import chat
from data.tokens.tokenizer import load as load_tokenizer
from launch import load as loading
from launch import own_sets, schema, settings
from launch.identity import describe_inputs
from launch.job import Job
from launch.schema import to_dict
from launch.store.rundir import ORIGIN, RunDir, remove, write_json
from tests import chat_oracle
from tests.launch.test_convert import TINY, make_params, make_source
from tests.launch.test_stages import MIX, ROOT, SMALL, seedbed, sources, write_texts
from train.checkpoint import Checkpointer

# Rows to spare, so that the vocabulary divides by the mesh's axes.
MODEL = dataclasses.replace(TINY, vocab_size=384, max_positions=512)
# Not those of the quickstart's model; the imported one has its own.
SIZES = {key: value for key, value in SMALL.items() if not key.startswith("model.")} | MIX
SIZES |= {"tokenizer.vocab_size": MODEL.vocab_size, "sft.seq_len": 320, "reward.seq_len": 320}
SIZES |= {"ppo.rollout.max_prompt_tokens": 256, "ppo.loop.save_every": 2}
STAGES = ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "eval")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiles in half the time; what is compiled runs a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def bring_in(folder, name, template=None):
    """An imported run of a tiny model with a published model's template, or with another."""
    make_source(folder / "hf", MODEL)
    chat_oracle.write_folder(folder / "hf", name)
    if template is not None:
        (folder / "hf" / "chat_template.jinja").write_text(template)
    code, _, err = seedbed("import", f"--hf={folder}/hf", f"--out={folder}/imported")
    assert code == 0, err
    return folder / "imported"


def tune(folder, stages, **changes):
    chosen = SIZES | sources(folder / "text") | {"stages": stages} | changes
    config = f"--config={ROOT}/configs/tune.py:{folder}/imported"
    return seedbed("run", config, f"--run={folder}/run", "--workers=1", **chosen)


def ask(run, question):
    code, out, err = seedbed("chat", f"--run={run}", f"--prompt={question}", "--tokens=8", "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [STAGES[:4], STAGES])
def test_every_stage_speaks_by_the_template(tmp_path, stages):
    imported = bring_in(tmp_path, "qwen3")
    assert ask(imported, "What is 2 + 3?")["stage"] == "import"
    own = tmp_path / "own.jsonl"
    talks = [
        chat_oracle.talk("Hi <|im_end|>", "Hello.", "And?", "So.", system="Be kind."),
        chat_oracle.talk("Think.", "<think>\nhm\n</think>\n\nYes."),
    ]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in talks]
    own.write_text("\ufeff" + "".join(lines), encoding="utf-8")
    code, out, err = tune(tmp_path, stages, **{"sft.data.mine.path": own})
    assert code == 0, err
    summary = json.loads(out)["stages"]
    tokenizer = load_tokenizer(imported / "tokenizer")
    run = RunDir(tmp_path / "run")
    config = schema.to_dataclass(instruct.InstructConfig, run.read_config()["instruct"], "instruct")
    examples = instruct.build(config)["train"]
    taught = [(*x.messages, chat_oracle.say("assistant", x.demonstration)) for x in examples]
    rendered = [chat.render(tokenizer, messages) for messages in taught + talks]
    kept = [mask for ids, mask in rendered if len(ids) <= SIZES["sft.seq_len"] + 1]
    assert summary["sft"]["num_tokens"] == sum(int(mask.sum()) for mask in kept)
    if "reward" in stages:
        check_pairs(run, tokenizer, examples)
    assert ask(run.path, "What is 2 + 3?")["stage"] == ("ppo" if "ppo" in stages else "sft")
    code, _, err = seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/out")
    assert code == 0, err
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def test_every_stage_looks_again_at_the_files_that_it_has_read(tmp_path, monkeypatch):
    """The user's conversations are edited as fine-tuning reads them: refused before a step."""
    bring_in(tmp_path, "qwen2.5")
    own, loaded, asked = tmp_path / "own.jsonl", [], []
    own.write_text(json.dumps({"messages": chat_oracle.talk("Hi.", "Hello.")}) + "\n")
    load, refuse = own_sets.read, Job.refuse_changed_files

    def edit(*given):
        loaded.append(load(*given))
        if len(loaded) == 2:  # the first is the check before all stages
            own.write_text(own.read_text() * 2)
        return loaded[-1]

    def note(job):
        asked.append(job.stage)
        refuse(job)

    monkeypatch.setattr(own_sets, "read", edit)
    monkeypatch.setattr(Job, "refuse_changed_files", note)
    code, _, err = tune(tmp_path, STAGES[:4], **{"sft.data.mine.path": own})
    assert code == 2 and "sft: files that it reads changed meanwhile (sft.data.mine)" in err
    assert asked == ["curate", "tokenizer", "pretrain", "sft"]
    assert not (tmp_path / "run" / "checkpoints" / "sft").exists()


def check_pairs(run, tokenizer, examples):
    prompts = {tuple(chat.render_prompt(tokenizer, x.messages).tolist()) for x in examples}
    (path,) = run.cache("pairs").glob("*/train.jsonl")
    pairs = path.read_text().splitlines()
    assert pairs and {tuple(json.loads(line)["prompt"]) for line in pairs} <= prompts


@pytest.mark.parametrize(
    ("name", "template", "why"),
    [
        ("deepseek-r1", None, "template does not show an answer after its own prompt"),
        ("qwen2.5", "{{ messages[0].content }}", "chat template: an assistant's answer"),
    ],
)
def test_a_template_that_cannot_teach_is_refused_first(tmp_path, name, template, why):
    bring_in(tmp_path, name, template)
    code, _, err = tune(tmp_path, STAGES)
    assert code == 2 and err.startswith("seedbed: stages has 'sft': ") and why in err
    assert err.count("\n") == 1 and not Path(tmp_path / "run").exists()


def test_own_conversations_that_the_template_refuses_are_refused_first(tmp_path):
    """Not after pretraining. One of each order of roles is tried."""
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    bring_in(tmp_path, "qwen2.5", template)
    own = tmp_path / "own.jsonl"
    talks = [chat_oracle.talk("Hi.", "Hello."), chat_oracle.talk("Hi.", "Ho.", system="Be kind.")]
    own.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    code, _, err = tune(tmp_path, STAGES[:4], **{"sft.data.mine.path": own})
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "stages has 'sft': conversation sft.data.mine-own.jsonl-2: message 0, role " in err
    assert "no system here" in err


def test_an_edit_of_the_imported_tokenizer_is_an_input_and_importing_again_is_none(tmp_path):
    def describe():
        config = tune_config.get_config(str(tmp_path / "imported")).to_dict()
        for domain in config["data"]["sources"]:
            write_texts(tmp_path / "text" / domain / "a.jsonl", 0)
            config["data"]["sources"][domain]["path"] = str(tmp_path / "text" / domain)
        return describe_inputs(settings.parse(config))

    imported = bring_in(tmp_path, "qwen2.5")
    before = describe()
    for folder in (imported, tmp_path / "hf"):
        remove(folder)
    bring_in(tmp_path, "qwen2.5")
    assert describe() == before
    (imported / "tokenizer" / "notes.txt").write_text("of no use")
    assert describe() == before
    with (imported / "tokenizer" / "chat_template.jinja").open("a") as file:
        file.write("{# mended #}")
    after = describe()
    assert {name for name in after if after[name] != before[name]} == {"tokenizer"}
    described = json.loads((imported / "config.json").read_text())
    described["config"]["generation"] = {"eos_token_id": 5}
    (imported / "config.json").write_text(json.dumps(described))
    other = describe()
    assert {name for name in after if after[name] != other[name]} == {"tokenizer"}
    described = json.loads((imported / "config.json").read_text())
    described["config"]["weights_sha256"] = "of another model"
    (imported / "config.json").write_text(json.dumps(described))
    assert describe()["pretrain"] != after["pretrain"]


def trained(folder, control, **fields):
    """A run that started from an imported one with a template, after its fine-tuning."""
    run, model = RunDir(folder / "run"), to_dict(MODEL)
    chosen = {"path": "", "control": control, "vocab_size": MODEL.vocab_size}
    described = {"model": model, "start": "imported", "tokenizer": chosen}
    run.write_config(described | {"instruct": {"date": "2026-01-01"}}, "1 x cpu")
    run.begin("tokenizer", {}, {}, fresh=True)
    chat_oracle.write_folder(run.stage("tokenizer"), "qwen2.5")
    origin = {"format": "hf", "model_type": "llama", "dtype": "float32", **fields}
    write_json(run.stage("tokenizer") / ORIGIN, origin)
    saved = Checkpointer(run.checkpoints("sft"), {"model": model}, {}, 1)
    saved.save(1, make_params(MODEL), {"step": np.int32(1)}, {})
    saved.close()
    return run


@pytest.mark.parametrize("control", [[], ["<|im_start|>", "er", "in", "at"]])
def test_an_export_stops_where_its_model_was_taught_to(tmp_path, control):
    """A base model's files name the end of a text alone."""
    base = load_tokenizer(bring_in(tmp_path, "qwen2.5") / "tokenizer").eos_id - 1
    generation = {"eos_token_id": [base], "temperature": 0.6}
    run = trained(tmp_path, control, token_ids={"eos_token_id": base}, generation=generation)
    code, _, err = seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/out", "--stage=sft")
    assert code == 0, err
    tokenizer, out = loading.load_tokenizer(run), load_tokenizer(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((tmp_path / "out" / name).read_text())
        assert fields["eos_token_id"] == [chat.end_id(tokenizer), base]
    assert fields["temperature"] == 0.6
    # As text, "er" and "s" would be one token.
    talk = chat_oracle.talk("say <|im_end|>.", "Hello.", system='Be "kind".')[:-1]
    shown = out.template.render_prompt(talk)
    assert shown.tolist() == chat.render_prompt(tokenizer, talk).tolist()


def test_no_template_and_no_control_is_refused_first(tmp_path):
    bring_in(tmp_path, "qwen2.5")
    (tmp_path / "imported" / "tokenizer" / "chat_template.jinja").unlink()
    code, _, err = tune(tmp_path, STAGES)
    assert code == 2 and "stages has 'sft': this model's tokenizer has no chat template" in err
    assert "tokenizer.control must name four tokens" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    # With a tokenizer that is only taken, too.
    taken = tmp_path / "imported" / "tokenizer"
    chosen = SMALL | MIX | sources(tmp_path / "text") | {"tokenizer.path": taken}
    chosen["tokenizer.vocab_size"] = MODEL.vocab_size
    config = f"--config={ROOT}/configs/quickstart.py"
    code, _, err = seedbed("run", config, f"--run={tmp_path}/run", "--workers=1", **chosen)
    assert code == 2 and "this model's tokenizer has no chat template" in err


def test_a_run_without_a_stage_that_chats_has_no_date_and_is_loaded(tmp_path):
    """Its config.json has no section `instruct`."""
    run = trained(tmp_path, [])
    described = {**run.read_config()}
    del described["instruct"]
    run.write_config(described, "1 x cpu")
    assert loading.load_tokenizer(run).date is None
