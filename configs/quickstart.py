"""The whole pipeline, small: from the Python installation's own text to an aligned chat model.

    make run            (or: seedbed run --config=configs/quickstart.py)

Two CPU cores, no accelerator, no network. Every key of every stage stands here, with its unit.
"""

from ml_collections import ConfigDict

from configs import _data


def get_config() -> ConfigDict:
    """Every key, with its default."""
    config = ConfigDict()
    config.name = "quickstart"  # the run directory is runs/<name> unless --run says otherwise
    config.seed = 0  # of initialisation, shuffling and sampling
    config.stages = (  # in this order; leave out what is not wanted
        "curate",
        "tokenizer",
        "pretrain",
        "sft",
        "reward",
        "dpo",
        "ppo",
        "eval",
        "report",
    )
    config.start = ""  # a run of `seedbed import` to start from; configs/tune.py fills in the rest
    config.data = _data.data()
    config.mixture = _data.mixture()
    config.tokenizer = tokenizer()
    config.instruct = instruct()
    config.model = model()
    config.mesh = mesh()
    config.pretrain = ConfigDict(
        dict(
            seq_len=256,  # tokens a row
            z_loss=1e-4,  # weight of logsumexp^2
            chunk_tokens=1024,  # tokens a device whose logits exist at once
            loop=loop(num_steps=360, batch_size=16, eval_every=120),
            optimizer=optimizer(peak_lr=3e-3, warmup_steps=40),
        )
    )
    config.sft = ConfigDict(
        dict(
            seq_len=256,  # tokens a row; prompt and answer fit in it
            z_loss=0.0,  # weight of logsumexp^2
            chunk_tokens=1024,  # tokens a device whose logits exist at once
            loop=loop(num_steps=420, batch_size=16, eval_every=420),
            optimizer=optimizer(peak_lr=2e-3, warmup_steps=30),
        )
    )
    config.reward = reward()
    config.dpo = dpo()
    config.ppo = ppo()
    config.eval = ConfigDict(
        dict(
            batch_size=64,  # rows or prompts at once
            max_new_tokens=48,  # longest answer
            temperature=1.0,  # of the sampled answers that policies are compared on
            num_duels=400,  # prompts on which DPO and PPO meet SFT
            num_samples=8,  # dialogues shown in the report
            num_heldout=8,  # held out, for training: documents a domain, conversations a kind
            ngram_order=5,  # bytes, of the n-gram baseline
            sets="",  # files of evaluation sets, for the gate contamination; none is evaluated
        )
    )
    config.cost = ConfigDict(dict(machine_watts=30.0))  # W under load, an estimate
    return config


def tokenizer() -> ConfigDict:
    """What is trained, or with `start` what is made of an imported one."""
    return ConfigDict(
        dict(
            kind="bpe",  # bpe, unigram (SentencePiece) or wordpiece
            path="",  # a tokenizer's file or folder to take instead; "": one is trained
            vocab_size=4096,  # ids of the one trained, control tokens and 256 bytes included
            sample_bytes=6_000_000,  # UTF-8 bytes of text to train on, domains in turn
            max_piece_chars=16,  # longest piece, characters
            character_coverage=0.9995,  # share of characters with an id; the rest fall to bytes
            control=(),  # with `start`: four of its tokens to mark system, user, assistant, end
        )
    )


def model() -> ConfigDict:
    """Shape of the language model. model/config.py says more."""
    return ConfigDict(
        dict(
            vocab_size=0,  # rows of the embedding; 0: tokenizer.vocab_size
            num_layers=4,
            d_model=192,  # D
            num_heads=4,  # N
            num_kv_heads=2,  # K; N: multi-head, 1: multi-query
            head_dim=48,  # H
            d_ff=512,  # F
            head="tied",  # tied or untied output embedding
            layers=("full",),  # kinds of attention, cycled over the depth: full, sliding
            window=0,  # tokens that a sliding layer sees
            positions="rope",  # rope or learned
            max_positions=0,  # tokens; size of the learned table
            norm="rms",  # rms or layer
            norm_place="pre",  # of norms around attention and feed-forward: pre, post, sandwich
            norm_eps=1e-6,
            mlp="swiglu",  # swiglu, geglu, gelu, relu2, clamped_swiglu
            bias=(),  # products with a bias: qkv, out, mlp, router
            qk_norm="head",  # RMSNorm of queries and keys: none, head, whole (projection)
            sinks=False,  # a learned logit a head that attention may flow to
            attention_scale=0.0,  # multiplies scores; 0 for head_dim^-0.5
            attention_softcap=0.0,  # bounds scores; 0 for none
            logit_softcap=0.0,  # bounds logits; 0 for none
            scale_embedding=True,  # token vectors times sqrt(D)
            rope=rope(),
            mla=dict(  # latent attention
                kv_rank=0,  # dims of the latent; 0 for none
                query_rank=0,  # dims that queries go through; 0: straight
                rope_dim=0,  # rotated dims of head_dim
                value_dim=0,  # dims of a value
            ),
            moe=moe(),
            vocab_multiple=1,  # the vocabulary is padded to a multiple of this, for tensor axes
            dtype="float32",  # of activations; parameters are float32
            remat="none",  # none, dots (keep matrix products) or full (keep layer inputs)
            scan_layers=False,  # True: one compiled body for all layers; False: faster on a CPU
            kernel="auto",  # attention: auto (by platform), xla, splash, cudnn, tokamax
            context="gather",  # attention over a context axis: gather keys, or ring
            quantized="none",  # products in training: none, int8, fp8
            stage_microbatches=1,  # parts of a batch in a pipeline, at least mesh.stage to fill it
            stage_repeats=1,  # times that a microbatch goes round the stages
        )
    )


def rope() -> dict:
    """Rotary positions, and how they are stretched."""
    return dict(
        theta=10_000.0,  # base of the frequencies
        local_theta=0.0,  # base in sliding layers, never stretched; 0: as in full ones
        scaling="none",  # none, linear, llama3, yarn
        factor=1.0,  # of stretching
        original_len=0,  # tokens it was trained on before (llama3, yarn)
        slow=1.0,  # turns over original_len below which a frequency is stretched
        fast=32.0,  # turns above which it is kept
        magnitude=1.0,  # multiplies sines and cosines
        truncate=True,  # yarn: bounds at whole dims
    )


def moe() -> dict:
    """Mixture of experts."""
    return dict(
        num_experts=0,  # E; 0 for none
        top_k=1,  # experts a token
        d_ff=0,  # F of an expert
        shared_d_ff=0,  # F of the expert that every token passes; 0 for none
        shared_gate=False,  # it has a sigmoid gate
        num_dense=0,  # first layers without experts
        every=1,  # every n-th layer has experts
        router="softmax",  # softmax or sigmoid
        normalize=True,  # chosen weights sum to 1
        scale=1.0,  # multiplies them
        num_groups=1,  # of experts
        top_groups=1,  # groups that a token may choose from
        balance_bias=False,  # a bias on the choice alone
        bias_rate=0.0,  # its move a step against the load
        aux_loss=0.0,  # weight of the load-balancing loss; 1 is its even value
        z_loss=0.0,  # weight of the router's logsumexp^2
        dispatch="dropless",  # dropless or capacity
        capacity_factor=1.0,  # places of an expert, relative to an even share of a row
    )


def mesh() -> ConfigDict:
    """Devices along each mesh axis inside a slice, and slices along each."""
    axes = dict.fromkeys(("data", "stage", "fsdp", "expert", "context", "tensor"), 1)
    return ConfigDict(
        dict(
            **(axes | dict(data=-1)),  # -1, for one axis: the devices that the others leave
            slices=axes,
            max_replicated=0.02,  # share of weight bytes that may be stored more than planned
        )
    )


def instruct() -> ConfigDict:
    """Instruction data made from the installation."""
    kinds = [
        "copy",
        "first",
        "last",
        "nth",
        "count",
        "join",
        "reverse_list",
        "enclose",
        "json_pair",
        "contains",
        "lookup",
        "maximum",
        "minimum",
        "compare",
        "add",
        "subtract",
        "reverse_word",
        "follow_up",
        "signature",
        "module_of",
        "summary",
        "benign",
        "unsafe",
        "unknown",
    ]
    return ConfigDict(
        dict(
            seed=0,
            num_train=30_000,  # conversations
            num_heldout_per_kind=40,  # distinct prompts of each kind, none of them in training
            num_words=300,  # names that tasks draw from
            num_functions=150,  # real functions asked about
            path="",  # JSONL of {"messages": [...]} to fine-tune on besides; "" for none
            date="2026-01-01",  # that an imported chat template prints as today's
            filler_rate=0.3,  # share of demonstrations wrapped in filler, as careless people do
            mix=dict.fromkeys(kinds, 1.0),  # relative weight of each kind
        )
    )


def loop(num_steps: int, batch_size: int, eval_every: int) -> ConfigDict:
    """Length and rhythm of a training stage."""
    return ConfigDict(
        dict(
            num_steps=num_steps,  # optimizer steps (PPO: iterations)
            batch_size=batch_size,  # rows a step over all devices (pairs, prompts)
            num_microbatches=1,  # parts of a batch, one after another, gradients summed
            log_every=10,  # steps
            save_every=100,  # steps
            eval_every=eval_every,  # steps
            keep_checkpoints=1,  # newest ones kept
        )
    )


def optimizer(peak_lr: float, warmup_steps: int, weight_decay: float = 0.1) -> ConfigDict:
    """AdamW and its schedule."""
    return ConfigDict(
        dict(
            schedule="cosine",  # cosine or wsd (warmup, stable, decay)
            peak_lr=peak_lr,
            warmup_steps=warmup_steps,  # steps
            decay_fraction=0.2,  # wsd: share of the updates that decay; 1: all, 0: the last alone
            final_lr_fraction=0.1,  # of the peak: the rate of the last update
            weight_decay=weight_decay,  # of matrices
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_norm=1.0,  # global gradient norm
        )
    )


def reward() -> ConfigDict:
    """Preference pairs and the reward model."""
    return ConfigDict(
        dict(
            seq_len=96,  # longest prompt and answer, tokens; longer pairs are left out
            centering=0.01,  # weight of (chosen + rejected)^2
            pairs=dict(
                num_prompts=1500,  # training prompts answered
                samples_per_prompt=3,  # answers each; best and worst by the gold rater are paired
                max_new_tokens=48,  # longest of those answers, tokens
                temperature=1.0,  # of those answers
                corrupt_rate=0.2,  # prompts with a corrupted reference among the answers
                noise_rate=0.05,  # labels flipped
                heldout_fraction=0.2,  # prompts kept for measuring
            ),
            loop=loop(num_steps=120, batch_size=32, eval_every=120),
            optimizer=optimizer(peak_lr=3e-4, warmup_steps=10, weight_decay=0.0),
        )
    )


def dpo() -> ConfigDict:
    """Direct preference optimisation on the reward stage's pairs."""
    return ConfigDict(
        dict(
            beta=0.1,  # strength of the pull to the reference
            kind="sigmoid",  # sigmoid (DPO, cDPO) or ipo
            label_smoothing=0.0,  # share of labels thought to be flipped (cDPO)
            loop=loop(num_steps=80, batch_size=32, eval_every=80),
            optimizer=optimizer(peak_lr=1e-4, warmup_steps=10, weight_decay=0.0),
        )
    )


def ppo() -> ConfigDict:
    """PPO; a step is an iteration."""
    return ConfigDict(
        dict(
            max_prompt_tokens=64,  # longer prompts are left out
            max_new_tokens=32,  # longest answer
            temperature=1.0,  # of sampling, and of every log-probability
            kl_price=0.05,  # reward units a nat from the fine-tuned model
            gamma=1.0,  # discount
            gae_lambda=0.95,
            clip_low=0.2,  # ratio below 1
            clip_high=0.2,  # ratio above 1
            dual_clip=float("inf"),  # bound on the ratio for negative advantages; inf: none
            value_clip=0.2,  # value units
            num_epochs=2,  # passes over a rollout
            num_minibatches=2,  # updates a pass
            missing_end_score=-1.0,  # replaces the score of an answer without end token
            loop=loop(num_steps=40, batch_size=64, eval_every=40),
            optimizer=optimizer(peak_lr=1e-4, warmup_steps=8, weight_decay=0.0),
            critic_optimizer=optimizer(peak_lr=3e-4, warmup_steps=8, weight_decay=0.0),
        )
    )
