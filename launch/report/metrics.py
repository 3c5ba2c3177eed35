"""What the figures of a run are: the metrics of metrics.jsonl and the figures of eval/results.json.

{name: (unit, meaning)}; a name in capitals stands for a part of the name that differs.
"""

METRICS = {
    "loss": (
        "nats a token; of reward and dpo a pair, of ppo and grpo an answer token",
        "of pretrain and sft cross-entropy alone; of reward with its centering",
    ),
    "z_loss": ("nats squared", "squared log-normaliser of the logits, before its weight"),
    "moe_balance": ("1 is even", "load-balancing loss of the routers, before its weight"),
    "moe_z": ("nats squared", "squared log-normaliser of the routers, before its weight"),
    "moe_dropped": ("choices a token and layer", "choices of experts beyond their capacity"),
    "moe_load_min": ("1 is even", "load of the expert that is chosen least"),
    "moe_load_max": ("1 is even", "load of the expert that is chosen most"),
    "grad_norm": ("loss units", "global norm of the gradient, before clipping"),
    "param_growth": ("ratio", "norm of the trained weights after the update over before it"),
    "lr": ("", "learning rate of the update just made; of ppo and grpo of the last one"),
    "tokens": ("tokens", "read since step 1 (ppo, grpo: longest answers)"),
    "flops": ("FLOPs", "of the model, since step 1, forward and backward; not of ppo and grpo"),
    "train_secs": (
        "seconds",
        "since the step of the line before, on the device, without evaluation and saving",
    ),
    "tokens_per_sec": (
        "tokens a second",
        "tokens read (ppo, grpo: longest answers), over train_secs",
    ),
    "mfu": (
        "share",
        "model FLOPs over train_secs, of the devices' peak; one that no data sheet has is measured",
    ),
    "accuracy": ("share", "pairs whose chosen answer scores higher (reward, dpo)"),
    "margin": ("score; of dpo nats times beta", "score of the chosen answer less the rejected's"),
    "chosen_logprob": ("nats an answer", "log-probability of the chosen answer (dpo)"),
    "reward": ("score", "mean reward of the sampled answers; of a reward model, normalised"),
    "kl": ("nats an answer", "from the model that the stage starts from, k1 estimate"),
    "kl_k3": ("nats an answer", "the same, the k3 estimate, which varies less"),
    "answer_tokens": ("tokens", "mean length of the sampled answers"),
    "finished": ("share", "answers with an end token"),
    "even_groups": ("share", "prompts whose answers all score alike, and teach nothing (grpo)"),
    "clip_fraction": ("share", "answer tokens whose ratio is clipped"),
    "entropy": ("nats a token", "of the policy"),
    "update_kl": ("nats a token", "from the policy that sampled the answers"),
    "value_loss": ("score squared", "clipped loss of the critic (ppo)"),
    "value_grad_norm": ("loss units", "as grad_norm, of the critic (ppo)"),
    "value_param_growth": ("ratio", "as param_growth, of the critic (ppo)"),
    "explained_variance": ("1 is perfect", "of the returns, by the critic (ppo)"),
    "heldout/METRIC": (
        "of the metric",
        "the stage's loss and metrics on held-out rows; of ppo and grpo reward and kl",
    ),
    "heldout_SET/METRIC": ("of the metric", "the same, of a data set of your own"),
    "heldout_bits_per_byte/DOMAIN": ("bits a byte", "of the first held-out documents (pretrain)"),
}
RESULTS = {
    "text.DOMAIN.model": ("bits a byte", "held-out text, by the first model of the run"),
    "text.DOMAIN.gzip": ("bits a byte", "the same by a compressor; also xz, and ngram of bytes"),
    "text_by_stage.MODEL": ("bits a byte", "all held-out text, by each model"),
    "dialog.MODEL.verifiable": ("share", "held-out tasks with one right answer, answered exactly"),
    "dialog.MODEL.refusal": ("share", "unsafe requests declined"),
    "dialog.MODEL.over_refusal": ("share", "harmless requests declined"),
    "dialog.MODEL.does_not_know": ("share", "made-up names that it says it does not know"),
    "dialog.MODEL.false_unknown": ("share", "real names that it says it does not know"),
    "dialog.MODEL.finished": ("share", "greedy answers with an end token"),
    "dialog.MODEL.response_tokens": ("tokens", "mean length of greedy answers"),
    "dialog.MODEL.kinds.KIND": ("share", "mean grade of one kind of question"),
    "preference.MODEL.win_rate": (
        "share",
        "prompts won against the model it started from, by the gold rater; ties count half; "
        "low and high bound the 95 % interval",
    ),
    "preference.MODEL.kl_nats": ("nats an answer", "from the model it started from"),
    "reward_model.accuracy": ("share", "held-out pairs ordered as their labels do"),
    "reward_model.by_set.SET.mean": ("share", "the same of one set; `pairs` are those made here"),
    "tasks.TASK.MODEL": ("share", "mean of a benchmark's metric; stderr, count, version and shots"),
}
