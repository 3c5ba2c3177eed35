"""Continues training an imported model, or one that was trained here.

    seedbed import --hf=DIR --out=runs/NAME
    seedbed run --config=configs/tune.py:runs/NAME

The model's shape and vocabulary are the imported run's. The chat stages can be added: they use the
model's chat template, or the format of data/tokens/chat.py if `tokenizer.control` names four tokens
of its vocabulary that it has no other use for.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart


def get_config(run: str) -> ConfigDict:
    """The quickstart's pretraining, from the parameters of a run: RUN[:STAGE[:STEP]]."""
    config = quickstart.get_config()
    config.name = "tune"
    config.start = run
    config.stages = ("curate", "tokenizer", "pretrain", "eval", "report")
    path = Path(run.partition(":")[0]) / "config.json"
    if not path.is_file():
        raise ValueError(f"{run}: holds no config.json; it must be a run, RUN or RUN:STAGE:STEP")
    described = json.loads(path.read_text())["config"]
    config.model = ConfigDict(described["model"])
    config.layout.scan_layers = True
    config.mesh = dict(data=1, fsdp=-1)  # all devices share the weights
    # A thirtieth of a fresh model's, and what the alignment of whole models commonly takes.
    config.pretrain.optimizer.peak_lr = 1e-4
    config.sft.optimizer.peak_lr = config.reward.optimizer.peak_lr = 1e-5
    for section in (config.dpo, config.ppo, config.grpo):
        section.optimizer.peak_lr = 1e-6
    config.ppo.critic_optimizer.peak_lr = 1e-5
    return config
