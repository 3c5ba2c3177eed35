"""The 7.4-million-parameter model that CPU training and decoding speed is measured on.

    seedbed bench --config=configs/bench_cpu.py

Expected on two cores, paired: 1.7 times `transformers` with torch eager in training, 4 times in
greedy decoding at batch 1 (LOG.md).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """d_model 256, 4 layers, 4 heads, SwiGLU 688, vocabulary 8192, batch 8 x 256, float32."""
    config = quickstart.get_config()
    config.name = "bench_cpu"
    config.tokenizer.vocab_size = 8192
    config.model.update(
        dict(d_model=256, num_kv_heads=4, head_dim=64, d_ff=688, head="untied", qk_norm="none")
    )
    config.pretrain.z_loss = 0.0
    config.pretrain.loop.batch_size = 8
    return config
