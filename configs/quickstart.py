"""The whole pipeline, small: from the Python installation's own text to an aligned chat model.

    make run            (or: seedbed run --config=configs/quickstart.py)

Two CPU cores, no accelerator, no network. What is not here has its default:
`seedbed config --config=configs/quickstart.py` prints every key with its unit.
"""

from ml_collections import ConfigDict

PROSE_GATES = (  # Gopher's without those on repetition: manuals repeat themselves
    "length",
    "language",
    "gopher_word_count",
    "gopher_mean_word_length",
    "gopher_symbol_ratio",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "gopher_alphabetic_words",
    "gopher_stop_words",
    "gopher_top_ngrams",
    "c4_lorem_ipsum",
)


def get_config() -> ConfigDict:
    """Nine stages of a model of 2.4 million parameters."""
    config = ConfigDict()
    config.name = "quickstart"
    # In this order; leave out what is not wanted.
    config.stages = ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo")
    config.stages += ("eval", "report")
    config.data = dict(
        sources=dict(
            docs=dict(path="python:docs", gates=PROSE_GATES),  # docstrings and reference manual
            code=dict(path="python:code", gates=("length",)),  # the standard library, without tests
        )
    )
    config.tokenizer = dict(vocab_size=4096, sample_bytes=6_000_000)
    config.model = dict(
        num_layers=4,
        d_model=192,
        num_heads=4,
        num_kv_heads=2,
        head_dim=48,
        d_ff=512,
        qk_norm="head",
        scale_embedding=True,
    )
    config.layout = dict(scan_layers=False)
    config.pretrain = dict(seq_len=256, z_loss=1e-4, **training(240, 16, 3e-3, 40))
    config.sft = dict(seq_len=256, **training(280, 16, 2e-3, 30))
    config.reward = dict(seq_len=64, **training(90, 32, 3e-4, 10))
    config.dpo = training(70, 32, 1e-4, 10)
    config.ppo = training(24, 64, 1e-4, 6)
    config.ppo["critic_optimizer"] = dict(peak_lr=3e-4, warmup_steps=6)
    config.grpo = training(40, 16, 1e-4, 8)
    # What the training stages share, but for what their own sections say.
    config.loop = dict(eval_every=200)
    config.optimizer = dict(weight_decay=0.0)
    config.rollout = dict(max_prompt_tokens=64, max_new_tokens=32)
    for section in (config.pretrain, config.sft):
        section.optimizer.weight_decay = 0.1
    return config


def training(num_steps: int, batch_size: int, peak_lr: float, warmup_steps: int) -> dict:
    """Length and rate of a training stage."""
    return dict(
        loop=dict(num_steps=num_steps, batch_size=batch_size),
        optimizer=dict(peak_lr=peak_lr, warmup_steps=warmup_steps),
    )
