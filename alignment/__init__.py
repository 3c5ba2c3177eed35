"""Stages after pretraining: supervised fine-tuning, reward model, DPO, PPO."""
