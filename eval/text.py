"""Bits per byte of held-out documents: how well a model predicts text, whatever its tokenizer."""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from data.mixture.loader import Batch, fixed_batches, lm_batch
from data.tokens.shards import pack_documents
from data.tokens.tokenizer import Tokenizer
from model.config import TransformerConfig
from model.loss import token_logprobs
from model.transformer import Params, forward

ALL = "all"


def bits_per_byte(
    config: TransformerConfig,
    params: Params,
    tokenizer: Tokenizer,
    documents_by_domain: Mapping[str, Sequence[str]],
    *,
    seq_len: int,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """Negative log2-likelihood of every token, EOS of each document included, by UTF-8 byte.

    Documents are packed as in pretraining: each token is predicted once, from what comes before it
    in its row and its document; a document that goes on in the next row loses its context there.

    Args:
      config: shape of the model.
      params: its parameters.
      tokenizer: the run's tokenizer.
      documents_by_domain: texts by domain; each domain has at least one byte. At least one.
      seq_len: targets in a row.
      batch_size: rows scored together.

    Returns:
      {domain: {"bits_per_byte", "bytes", "tokens", "documents"}}, and "all" over every domain,
      each byte counting once.

    Raises:
      ValueError: no domain, a domain without text, or one called "all".
    """
    if not documents_by_domain:
        raise ValueError("no domain to score; at least one is needed")
    totals = {}
    for domain, documents in documents_by_domain.items():
        num_bytes = sum(len(text.encode()) for text in documents)
        if domain == ALL or not num_bytes:
            raise ValueError(f"domain {domain!r}, {num_bytes} bytes; text and a name but {ALL!r}")
        rows = pack_documents(
            tokenizer.encode_batch(documents), seq_len, tokenizer.bos_id, tokenizer.eos_id
        )
        nats, num_tokens = _score(config, params, list(rows), batch_size)
        totals[domain] = (nats, num_bytes, num_tokens, len(documents))
    totals[ALL] = tuple(map(sum, zip(*totals.values(), strict=True)))
    return {
        domain: {
            "bits_per_byte": nats / math.log(2) / num_bytes,
            "bytes": num_bytes,
            "tokens": num_tokens,
            "documents": num_documents,
        }
        for domain, (nats, num_bytes, num_tokens, num_documents) in totals.items()
    }


def _score(
    config: TransformerConfig, params: Params, rows: list[Batch], batch_size: int
) -> tuple[float, int]:
    """Total negative log-likelihood in nats, and the number of targets."""
    sums, num_tokens = [], 0
    for stacked in fixed_batches(rows, batch_size):
        batch = lm_batch(stacked)
        # Not read yet: the device goes on while the next batch is put together.
        sums.append(_row_nats(config, params, batch))
        num_tokens += int(batch["weights"].sum())
    return float(np.sum(jax.device_get(sums), dtype=np.float64)), num_tokens


@functools.partial(jax.jit, static_argnames="config")
def _row_nats(config: TransformerConfig, params: Params, batch: Batch) -> jax.Array:
    logits_BLV = forward(config, params, batch["tokens"], batch["positions"], batch["segments"])
    return -(token_logprobs(logits_BLV, batch["targets"], 1.0) * batch["weights"]).sum(-1)
