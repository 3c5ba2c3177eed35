"""The decoder: embedding, stacks of layers, final norm, head; every family of configs/families.py.

Every weight is declared once, in `layer.weight(rngs, letters, sizes, init)`: its letters give its
shape and, by model/sharding.py, its sharding on any mesh. Outside of model/ parameters are a plain
nested dict of arrays, and `init` and `forward` are pure functions of a frozen configuration.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from model import kernel, layer_pipeline, moe, ring, sharding
from model.attention import TokenIndex, softcap
from model.config import DTYPES, Layer, Stack, TransformerConfig, layer_kinds, stacks
from model.layer import FeedForward, Norm, cast, product, weight
from model.self_attention import GroupedAttention, LatentAttention

Params = dict[str, Any]

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nnx.Module):
    """One layer: attention and feed-forward, each added to its input."""

    def __init__(self, config: TransformerConfig, kind: Layer, rngs: nnx.Rngs):
        attention = LatentAttention if config.mla.kv_rank else GroupedAttention
        before, after = config.norm_place != "post", config.norm_place != "pre"
        self.window = config.window if kind.sliding else 0
        self.scale = config.attention_scale or config.head_dim**-0.5
        self.attention_norm = Norm(config, "D", rngs) if before else None
        self.attention = attention(config, kind.sliding, rngs)
        self.attention_post_norm = Norm(config, "D", rngs) if after else None
        self.feed_forward_norm = Norm(config, "D", rngs) if before else None
        self.experts = kind.experts
        wide = moe.Experts(config, rngs) if kind.experts else FeedForward(config, rngs, config.d_ff)
        self.feed_forward = wide
        self.feed_forward_post_norm = Norm(config, "D", rngs) if after else None

    def __call__(
        self, x_BLD: jax.Array, tokens: TokenIndex, attend: Callable, cached: bool = False
    ):
        """Runs the layer.

        Args:
          x_BLD: input.
          tokens: positions for the rotation, both for the router.
          attend: (q_BLNH, k_BKLH, v_BKLH) -> mixed_BLNH: attention over a row, or over a cache.
          cached: keys and values are those of `self_attention.cache_dims`.

        Returns:
          The output x_BLD, and the router's statistics ({} without experts).
        """
        normed_BLD = _normed(self.attention_norm, x_BLD)
        q, k, v = self.attention.project(normed_BLD, tokens.positions_BL, cached)
        y_BLD = self.attention.merge(attend(q, k, v), cached)
        x_BLD = x_BLD + _normed(self.attention_post_norm, y_BLD)
        normed_BLD, stats = _normed(self.feed_forward_norm, x_BLD), {}
        if self.experts:
            y_BLD, stats = self.feed_forward(normed_BLD, tokens)
        else:
            y_BLD = self.feed_forward(normed_BLD)
        x_BLD = x_BLD + _normed(self.feed_forward_post_norm, y_BLD)
        return sharding.constrain(x_BLD, "BLD"), stats


def _normed(norm: Norm | None, x_BLD: jax.Array) -> jax.Array:
    return x_BLD if norm is None else norm(x_BLD)


class LayerGroup(nnx.Module):
    """The layers that a stack repeats; parameters are stacked along X."""

    def __init__(self, config: TransformerConfig, stack: Stack, rngs: nnx.Rngs):
        for offset, kind in enumerate(stack.layers):
            setattr(self, f"layer{offset}", Block(config, kind, rngs))


class Rows(NamedTuple):
    """What each layer hands to the next: activations, their tokens' index, the router's statistics.

    The first dim of every leaf is B, so that a pipeline may split it into microbatches.
    """

    x_BLD: jax.Array
    tokens: TokenIndex
    stats: dict[str, jax.Array]


class Transformer(nnx.Module):
    """Embedding, stacks of layers, final norm and head."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        sizes, input_rms = config.sizes(), _input_rms(config)
        scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.config = config
        self.embedding = weight(rngs, "VD", sizes, input_rms / scale)
        learned = config.positions == "learned"
        self.position_table = weight(rngs, "TD", sizes, input_rms) if learned else None
        for number, stack in enumerate(stacks(config)):
            make = nnx.vmap(
                functools.partial(LayerGroup, config, stack),
                transform_metadata={nnx.PARTITION_NAME: "X"},
            )
            setattr(self, f"stack{number}", make(rngs.split(stack.repeats)))
        self.norm = Norm(config, "D", rngs)
        # Scalar: N(0, 1/sqrt(D + 1)), arXiv 2403.17031 (reward head of the OpenAI code).
        stds = {"untied": 1.0 / config.d_model, "scalar": (config.d_model + 1) ** -0.5}
        letters = "DV" if config.head == "untied" else "D"
        self.head = (
            None if config.head == "tied" else weight(rngs, letters, sizes, stds[config.head])
        )

    def embed(self, tokens_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """Token vectors, with those of their positions where they are learned."""
        # Gathered along D first: a lookup in a table that is split both ways would replicate it.
        table_VD = sharding.constrain(self.embedding[...], "V_")
        x_BLD = table_VD[tokens_BL].astype(DTYPES[self.config.dtype])
        if self.config.scale_embedding:
            x_BLD = x_BLD * jnp.asarray(math.sqrt(self.config.d_model), x_BLD.dtype)
        if self.position_table is not None:
            table_TD = sharding.constrain(cast(x_BLD, self.position_table), "T_")
            # Out-of-range positions give NaN; indexing would clamp to the last row.
            x_BLD = x_BLD + table_TD.at[positions_BL].get(mode="fill", fill_value=jnp.nan)
        return sharding.constrain(x_BLD, "BLD")

    def head_matrix(self) -> jax.Array:
        """head_DV, float32; of a tied head, the embedding's transpose."""
        return self.embedding[...].T if self.config.head == "tied" else self.head[...]

    def project(self, x_BLD: jax.Array) -> jax.Array:
        """Final norm and head: logits_BLV, or values_BL of a scalar head; float32."""
        x_BLD = self.norm(x_BLD)
        if self.config.head == "scalar":
            return product("BLD,D->BL", x_BLD, cast(x_BLD, self.head), jnp.float32)
        head_DV = self.head_matrix().astype(x_BLD.dtype)
        logits_BLV = product("BLD,DV->BLV", x_BLD, head_DV, jnp.float32)
        logits_BLV = softcap(sharding.constrain(logits_BLV, "BLV"), self.config.logit_softcap)
        return logits_BLV[..., : self.config.vocab_size]

    def unstack(self) -> list[list[LayerGroup]] | None:
        """The layers one by one if the config does not scan them, else None.

        A caller that runs them in a loop slices the stacks once, outside of it.
        """
        if self.config.layout.scan_layers:
            return None
        return [
            [
                nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
                for i in range(stack.repeats)
            ]
            for stack, (graph, stacked) in self._split()
        ]

    def _split(self):
        for number, stack in enumerate(stacks(self.config)):
            yield stack, nnx.split(getattr(self, f"stack{number}"))

    def layers(
        self,
        body: Callable[[Block, tuple[int, int], Any, Any], Any],
        carry: Any,
        groups: list[list[LayerGroup]] | None = None,
        pipelined: bool = False,
    ) -> Any:
        """Runs `carry = body(block, (stack, offset), index, carry)` over the layers.

        Args:
          body: one layer; the weights of layer `index` of its stack and offset are in the block.
          carry: the argument of the first layer's call.
          groups: from `unstack`. Without them each stack is a scan: one compiled body.
          pipelined: on a mesh with several stages, the longest stack runs as a pipeline; each
            leaf of the carry must lead with B.
        """
        if groups is not None:
            for number, repeated in enumerate(groups):
                for index, group in enumerate(repeated):
                    for offset in range(len(stacks(self.config)[number].layers)):
                        block = getattr(group, f"layer{offset}")
                        carry = body(block, (number, offset), index, carry)
            return carry
        longest = max(stack.repeats for stack in stacks(self.config))
        for number, (stack, (graph, stacked)) in enumerate(self._split()):
            step = self._make_step(body, number, stack, graph)
            indices = jnp.arange(stack.repeats)
            if pipelined and stack.repeats == longest and sharding.axis_size("stage") > 1:
                carry = layer_pipeline.run(self.config, step, carry, (stacked, indices))
                longest = None  # only one stack is pipelined
            else:
                scan = functools.partial(jax.lax.scan, unroll=not self.config.layout.scan_layers)
                carry = scan(step, carry, (stacked, indices))[0]
        return carry

    def _make_step(self, body: Callable, number: int, stack: Stack, graph: nnx.GraphDef):
        """The scanned function over one group; each of its layers is recomputed on its own."""
        policy = REMAT[self.config.layout.remat]

        def step(carry, layer):
            params, index = layer
            for offset in range(len(stack.layers)):

                def run(params, index, carry, offset=offset):
                    block = getattr(nnx.merge(graph, params), f"layer{offset}")
                    return body(block, (number, offset), index, carry)

                if policy is not None:
                    # A scan's body is not merged with its recomputation; an unrolled one is.
                    unrolled = not self.config.layout.scan_layers or len(stack.layers) > 1
                    run = jax.checkpoint(run, policy=policy, prevent_cse=unrolled)
                carry = run(params, index, carry)
            return carry, None

        return step


def _input_rms(config: TransformerConfig) -> float:
    """RMS of fresh token vectors in the residual stream; `init` says why."""
    if config.head != "tied":
        return 1.0
    return config.d_model**-0.25 if config.scale_embedding else (3 * config.d_model) ** -0.5


@functools.lru_cache(maxsize=64)
def _abstract(config: TransformerConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure of the model, and its parameters' shapes and letters; no device is touched."""
    with nnx.use_eager_sharding(False):
        # Not nnx.eval_shape: under a mesh it looks for the letters among the mesh's axes.
        return jax.eval_shape(lambda: nnx.split(_new(config, jax.random.key(0))))


def _new(config: TransformerConfig, rng: jax.Array) -> Transformer:
    return Transformer(config, nnx.Rngs(params=rng))


def declare(config: TransformerConfig) -> Params:
    """Letters and shape of every weight.

    Returns:
      A tree like the parameters' with a sharding.Weight in place of each array.
    """
    return jax.tree.map(
        lambda param: sharding.Weight("".join(param.out_sharding), param.shape),
        nnx.to_pure_dict(_abstract(config)[1], extract_fn=lambda param: param),
        is_leaf=lambda node: isinstance(node, nnx.Param),
    )


def init(config: TransformerConfig, rng: jax.Array, mesh: Mesh | None = None) -> Params:
    """Fresh parameters: float32, a nested dict of arrays, placed on the mesh if one is given.

    Weights have variance 1 / fan-in, so that a product of unit-variance inputs has unit variance;
    the last product of a sublayer is smaller by sqrt(2 x layers), so that all of them together add
    a variance of at most about 1 to the residual stream. The first loss is near ln V:
      A head of its own has std 1 / D, and logits have variance 1 / D. Token vectors have RMS 1.
      A tied head has the embedding's std s, and logits have variance s^2 D. A token's own logit is
      s D x (share of its vector in the normed output), at most s D r with an input RMS of r. With
      vectors scaled by sqrt(D), r = s sqrt(D), and r = D^-1/4 is the greatest that keeps it of
      order 1 at any width; without, r = s, and s = (3 D)^-1/2 is GPT-2's 0.02 at its width of 768.

    Args:
      config: shape of the model.
      rng: a key; the same one gives the same weights on any mesh.
      mesh: where the weights go, split as `model.sharding` says; None for the default device.

    Raises:
      ValueError: the mesh cannot split some weight.

    Source: inputs arXiv 2312.16903; sublayers GPT-2 (Radford et al. 2019), section 2.3; own head
    arXiv 2203.03466, table 3; tied (3 D)^-1/2 arXiv 2201.11990 (.004 at D = 20480); D^-1/4 is ours.
    """

    def create(rng):
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.state(_new(config, rng), nnx.Param))

    shardings = sharding.weight_shardings(declare(config), mesh) if mesh else None
    return jax.jit(create, out_shardings=shardings)(rng)


def build(config: TransformerConfig, params: Params) -> Transformer:
    """The module, holding these parameters."""
    return nnx.merge(_abstract(config)[0], params)


@functools.partial(jax.jit, static_argnames=("config", "tail"))
def forward(
    config: TransformerConfig,
    params: Params,
    tokens_BL: jax.Array,
    positions_BL: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
    tail: int | None = None,
) -> jax.Array:
    """Runs the decoder over packed rows; compiles once for each shape.

    Args:
      config: shape of the model.
      params: from `init`, or imported.
      tokens_BL: token ids, below the vocabulary's size.
      positions_BL: position of each token in its own segment, from 0; by default each row is one
        segment.
      segments_BL: a token sees earlier tokens of its own segment only; 0 is padding, whose
        outputs mean nothing.
      tail: if given, only the last `tail` positions go through the head.

    Returns:
      logits_BLV, or values_BL where config.head is 'scalar'; float32. Positions for which a model
      has learned no vector make their row NaN.

    Raises:
      ValueError: rows without given positions are longer than the learned positions.
    """
    if positions_BL is None:
        config.check_length("tokens_BL", tokens_BL.shape[1])
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    if segments_BL is None:
        segments_BL = jnp.ones_like(tokens_BL)
    model = build(config, params)
    x_BLD = _run(model, tokens_BL, TokenIndex(positions_BL, segments_BL)).x_BLD
    return model.project(x_BLD if tail is None else x_BLD[:, -tail:])


def features(
    config: TransformerConfig, params: Params, tokens_BL: jax.Array, tokens: TokenIndex
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """What a loss that never holds all logits needs.

    Args:
      config: shape of the model.
      params: its parameters.
      tokens_BL: token ids, in [0, V).
      tokens: position and segment of each; segment 0 is padding.

    Returns:
      (x_BLD after the final norm, head_DV with the padded vocabulary, the router's statistics
      of model/moe.py, {} without experts).
    """
    model = build(config, params)
    rows = _run(model, tokens_BL, tokens)
    return model.norm(rows.x_BLD), model.head_matrix(), rows.stats


def _run(model: Transformer, tokens_BL: jax.Array, tokens: TokenIndex) -> Rows:
    config = model.config

    def body(block, where, index, rows):
        attend = functools.partial(_attend, config, block, rows.tokens)
        x_BLD, stats = block(rows.x_BLD, rows.tokens, attend)
        return Rows(x_BLD, rows.tokens, _add_stats(config, rows.stats, stats, where, index))

    x_BLD = model.embed(tokens_BL, tokens.positions_BL)
    rows = Rows(x_BLD, tokens, _empty_stats(config, tokens_BL.shape[0]))
    return model.layers(body, rows, pipelined=True)


def _attend(config, block: Block, tokens: TokenIndex, q_BLNH, k_BKMH, v_BKMH) -> jax.Array:
    """Attention of packed rows over themselves."""
    sink_N = None if block.attention.sink is None else block.attention.sink[...]
    request = (tokens, block.window, block.scale, sink_N)
    num_shards = sharding.axis_size("context")
    if config.layout.context == "ring" and num_shards > 1:
        reason = ring.refusal(q_BLNH.shape[1], num_shards)
        if reason is None:
            return ring.attention(config, q_BLNH, k_BKMH, v_BKMH, *request)
        kernel.warn_once("ring", reason)
    q_BLNH = sharding.constrain(q_BLNH, "BLNH")
    k_BKMH, v_BKMH = (sharding.constrain(x, "BKMH") for x in (k_BKMH, v_BKMH))
    return kernel.attention(config, q_BLNH, k_BKMH, v_BKMH, *request)


def _empty_stats(config: TransformerConfig, num_rows: int) -> dict[str, jax.Array]:
    """Zeros for what routers count: sums over layers, but the load of each layer on its own."""
    num_layers = sum(kind.experts for kind in layer_kinds(config))
    if not num_layers:
        return {}
    stats = {name: jnp.zeros(num_rows) for name in ("moe_balance", "moe_z", "moe_dropped")}
    return {**stats, "moe_load": jnp.zeros((num_rows, num_layers, config.moe.num_experts))}


def _add_stats(config, total: dict, stats: dict, where: tuple[int, int], index) -> dict:
    """Adds one layer's statistics."""
    if not stats:
        return total
    number, offset = where
    below, stack = stacks(config)[:number], stacks(config)[number]
    experts = [kind.experts for kind in stack.layers]
    first = sum(part.repeats * sum(kind.experts for kind in part.layers) for part in below)
    layer = first + index * sum(experts) + sum(experts[:offset])
    load = total["moe_load"].at[:, layer].add(stats["moe_load"])
    sums = {name: total[name] + stats[name] for name in total if name != "moe_load"}
    return {**sums, "moe_load": load}
