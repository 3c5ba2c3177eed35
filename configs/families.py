"""Published architectures: pretraining of each, by the keys that differ from the plain decoder.

    seedbed run --config=configs/families.py:llama3.1-8b

Sizes are those of the published config.json; tests/configs/test_families.py compares the number of
parameters with transformers'. The embedding has the published number of rows. The tokenizer is
trained on the text at hand, which seldom supports so many ids: at most MAX_TRAINED_IDS, and the
other rows stay unused. `--config.tokenizer.path=DIR` takes the family's own tokenizer instead.
Text and schedule are the quickstart's: give your own.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart

MAX_TRAINED_IDS = 32_768
# Families below 0.9 B parameters are computed as the quickstart is. All others compute in bfloat16
# and keep only the inputs of layers for the backward pass (layout.remat).
SMALL = ("gpt2", "gemma3-270m")

# The plain decoder: pre-norm, RMSNorm, RoPE, SwiGLU, no biases, a head of its own.
PLAIN = dict(head="untied", qk_norm="none", scale_embedding=False, norm_eps=1e-5)
# Attention of 128-dim heads.
WIDE = dict(head_dim=128)

LLAMA2 = dict(vocab_size=32_000, **WIDE)
STRETCHED = dict(theta=5e5, scaling="llama3", factor=8.0, original_len=8192, slow=1.0, fast=4.0)
LLAMA3 = dict(vocab_size=128_256, num_kv_heads=8, rope=dict(theta=5e5), **WIDE)
LLAMA31 = LLAMA3 | dict(rope=STRETCHED)
# Source: GPT-2 (Radford et al. 2019), section 2.3; GPT-3, arXiv 2005.14165, table 2.1.
GPT = dict(
    vocab_size=50_257,
    head="tied",
    positions="learned",
    norm="layer",
    mlp="gelu",
    bias=("qkv", "out", "mlp"),
)
QWEN = dict(vocab_size=151_936, norm_eps=1e-6, rope=dict(theta=1e6), **WIDE)
GEMMA = dict(
    vocab_size=256_000,
    head="tied",
    head_dim=256,
    mlp="geglu",
    norm_eps=1e-6,
    scale_embedding=True,
)
GEMMA3 = GEMMA | dict(
    vocab_size=262_144,
    norm_place="sandwich",
    qk_norm="head",
    layers=("sliding",) * 5 + ("full",),
    window=512,
    rope=dict(theta=1e6, local_theta=1e4),
)


def sizes(layers: int, width: int, heads: int, kv_heads: int, d_ff: int) -> dict[str, int]:
    """Depth and widths."""
    return dict(num_layers=layers, d_model=width, num_heads=heads, num_kv_heads=kv_heads, d_ff=d_ff)


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT | sizes(12, 768, 12, 12, 3072) | dict(head_dim=64, max_positions=1024),
    # Every second layer sees a band, whose width was not published.
    "gpt3-175b": GPT
    | sizes(96, 12_288, 96, 96, 49_152)
    | dict(head_dim=128, max_positions=2048, layers=("full", "sliding"), window=256),
    # arXiv 2307.09288, 2407.21783.
    "llama2-7b": LLAMA2 | sizes(32, 4096, 32, 32, 11_008),
    "llama3-8b": LLAMA3 | sizes(32, 4096, 32, 8, 14_336),
    "llama3.1-8b": LLAMA31 | sizes(32, 4096, 32, 8, 14_336),
    "llama3.1-70b": LLAMA31 | sizes(80, 8192, 64, 8, 28_672),
    "llama3.1-405b": LLAMA31 | sizes(126, 16_384, 128, 8, 53_248),
    # arXiv 2310.06825, 2401.04088.
    "mistral-7b": LLAMA2 | sizes(32, 4096, 32, 8, 14_336) | dict(layers=("sliding",), window=4096),
    "mixtral-8x7b": LLAMA2
    | sizes(32, 4096, 32, 8, 14_336)
    | dict(rope=dict(theta=1e6), moe=dict(num_experts=8, top_k=2, d_ff=14_336, aux_loss=0.02)),
    # arXiv 2407.10671, 2505.09388.
    "qwen2-7b": QWEN | sizes(28, 3584, 28, 4, 18_944) | dict(vocab_size=152_064, bias=("qkv",)),
    "qwen2-57b-a14b": QWEN
    | sizes(28, 3584, 28, 4, 18_944)
    | dict(
        bias=("qkv",),
        moe=dict(
            num_experts=64,
            top_k=8,
            d_ff=2560,
            shared_d_ff=20_480,
            shared_gate=True,
            normalize=False,
            aux_loss=0.001,
        ),
    ),
    "qwen3-8b": QWEN | sizes(36, 4096, 32, 8, 12_288) | dict(qk_norm="head"),
    "qwen3-30b-a3b": QWEN
    | sizes(48, 2048, 32, 4, 6144)
    | dict(qk_norm="head", moe=dict(num_experts=128, top_k=8, d_ff=768, aux_loss=0.001)),
    # arXiv 2403.08295, 2408.00118, 2503.19786.
    "gemma-2b": GEMMA | sizes(18, 2048, 8, 1, 16_384),
    "gemma2-2b": GEMMA
    | sizes(26, 2304, 8, 4, 9216)
    | dict(
        norm_place="sandwich",
        layers=("sliding", "full"),
        window=4096,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma3-270m": GEMMA3 | sizes(18, 640, 4, 1, 2048),
    "gemma3-1b": GEMMA3 | sizes(26, 1152, 4, 1, 6912),
    "gemma3-27b": GEMMA3
    | sizes(62, 5376, 32, 16, 21_504)
    | dict(
        vocab_size=262_208,
        head_dim=128,
        window=1024,
        attention_scale=168**-0.5,
        rope=dict(theta=1e6, local_theta=1e4, scaling="linear", factor=8.0),
    ),
    # arXiv 2501.00656.
    "olmo2-7b": sizes(32, 4096, 32, 32, 11_008)
    | WIDE
    | dict(
        vocab_size=100_352,
        norm_place="post",
        norm_eps=1e-6,
        qk_norm="whole",
        rope=dict(theta=5e5),
    ),
    # arXiv 2412.19437; the second token that it predicts ahead is left out.
    "deepseek-v3": sizes(61, 7168, 128, 128, 18_432)
    | dict(
        vocab_size=129_280,
        head_dim=192,
        norm_eps=1e-6,
        attention_scale=192**-0.5 * 1.3688879454113936**2,  # (0.1 ln 40 + 1)^2 with YaRN
        rope=dict(scaling="yarn", factor=40.0, original_len=4096),
        mla=dict(kv_rank=512, query_rank=1536, rope_dim=64, value_dim=128),
        moe=dict(
            num_experts=256,
            top_k=8,
            d_ff=2048,
            shared_d_ff=2048,
            num_dense=3,
            router="sigmoid",
            scale=2.5,
            num_groups=8,
            top_groups=4,
            balance_bias=True,
            bias_rate=0.001,
            aux_loss=0.0001,
        ),
    ),
    # arXiv 2508.10925.
    "gpt-oss-20b": sizes(24, 2880, 64, 8, 2880)
    | dict(
        vocab_size=201_088,
        head_dim=64,
        layers=("sliding", "full"),
        window=128,
        mlp="clamped_swiglu",
        bias=("qkv", "out", "mlp", "router"),
        sinks=True,
        rope=dict(
            theta=150_000.0,
            scaling="yarn",
            factor=32.0,
            original_len=4096,
            magnitude=1.3465735902799727,  # 0.1 ln 32 + 1
            truncate=False,
        ),
        moe=dict(num_experts=32, top_k=4, d_ff=2880, aux_loss=0.001),
    ),
    # Rumour: 1.8 T parameters, 120 layers, 16 experts of which 2 answer, multi-query attention.
    # OpenAI has published none of it; widths are ours, to meet that total.
    "gpt4-moe": GPT
    | sizes(120, 12_288, 96, 1, 36_864)
    | dict(
        vocab_size=100_277,
        head_dim=128,
        max_positions=8192,
        moe=dict(num_experts=16, top_k=2, d_ff=36_864, aux_loss=0.01),
    ),
}


def get_config(name: str) -> ConfigDict:
    """The quickstart's pretraining of another model.

    Args:
      name: a key of FAMILIES.
    """
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}; it must be one of {', '.join(FAMILIES)}")
    config = quickstart.get_config()
    config.name = name
    config.stages = ("curate", "tokenizer", "pretrain", "eval")
    switches = PLAIN | FAMILIES[name]
    config.model.update(switches)
    config.tokenizer.vocab_size = min(config.model.vocab_size, MAX_TRAINED_IDS)
    if name not in SMALL:
        config.model.dtype = "bfloat16"
        config.layout.remat = "full"
    config.layout.scan_layers = True
    config.mesh = dict(data=1, fsdp=-1)  # all devices share the weights
    return config
