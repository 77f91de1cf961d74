"""Ready recipes: published pipelines, each step with its paper's settings, which a suite may replace.

The settings are those of the papers' models of billions of parameters and their large datasets. For a small model they
are a beginning: its learning rates are higher, its steps fewer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PIPELINES", "Pipeline"]


@dataclass(frozen=True)
class Pipeline:
    """Steps in order, from a base model (or from a recipe that the suite uses before)."""

    paper: str
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    """Method and settings of each."""

    @property
    def names(self) -> tuple[str, ...]:
        """The steps' names: the method's, from its second use on with a number (`sft_2`)."""
        seen: dict[str, int] = {}
        names = []
        for method, _ in self.steps:
            seen[method] = seen.get(method, 0) + 1
            names.append(method if seen[method] == 1 else f"{method}_{seen[method]}")
        return tuple(names)


PIPELINES: Mapping[str, Pipeline] = {
    "chatgpt": Pipeline(
        # Its appendix C: SFT 16 epochs of 13k demonstrations, cosine, at 9.65e-6 (1.3B, 6B); the reward model one epoch
        # at 9e-6 with batches of 64 prompts; PPO with batches of 512 in minibatches of 64, clip 0.2, KL 0.02,
        # one inner epoch, no discount, 256k episodes, warm-up of 10 iterations.
        "Ouyang et al. 2022, arXiv:2203.02155",
        (
            (
                "sft",
                {"learning_rate": 9.65e-6, "batch_size": 32, "steps": 6500, "lr_scheduler": "cosine"},
            ),
            ("reward_model", {"learning_rate": 9e-6, "batch_size": 64, "steps": 516, "lr_scheduler": "cosine"}),
            (
                "ppo",
                {
                    "learning_rate": 9.65e-6,
                    "kl_coef": 0.02,
                    "rollout_batch_size": 512,
                    "minibatch_size": 64,
                    "iterations": 500,
                    "epochs": 1,
                    "gamma": 1.0,
                    "lam": 0.95,
                    "clip_range": 0.2,
                    "warmup": 0.02,
                    "value": "model",
                    "value_learning_rate": 9e-6,
                },
            ),
        ),
    ),
    "zephyr": Pipeline(
        # SFT one epoch of 200k dialogues in batches of 512, cosine at 2e-5; DPO at 5e-7 with beta 0.1, linear, in
        # batches of 32, three epochs of 64k pairs.
        "Tunstall et al. 2023, arXiv:2310.16944",
        (
            (
                "sft",
                {
                    "learning_rate": 2e-5,
                    "batch_size": 8,
                    "gradient_accumulation": 64,
                    "lr_scheduler": "cosine",
                    "steps": 390,
                },
            ),
            (
                "dpo",
                {
                    "learning_rate": 5e-7,
                    "beta": 0.1,
                    "batch_size": 8,
                    "gradient_accumulation": 4,
                    "lr_scheduler": "linear",
                    "steps": 5700,
                },
            ),
        ),
    ),
    "claude": Pipeline(
        # Four critiques and revisions of each answer, sampled at temperature 1; fine-tuning on the revisions at a
        # constant rate, one epoch of 183k; then two samples a prompt labelled by the feedback model with a principle
        # drawn for each, a preference model on these labels, and RL against it (as Bai et al. 2022, arXiv:2204.05862:
        # KL penalty 0.001, batches of 512). Its rates are relative to those of pretraining; these are InstructGPT's.
        "Bai et al. 2022, arXiv:2212.08073",
        (
            ("critique_revision", {"rounds": 4, "prompts": 182_831, "temperature": 1.0, "max_new_tokens": 512}),
            (
                "sft",
                {
                    "dataset": "made",
                    "learning_rate": 9.65e-6,
                    "batch_size": 32,
                    "gradient_accumulation": 32,
                    "steps": 178,
                    "lr_scheduler": "constant",
                },
            ),
            ("ai_preferences", {"judge": "self", "prompts": 182_831, "temperature": 1.0, "max_new_tokens": 512}),
            (
                "reward_model",
                {"dataset": "made", "learning_rate": 9e-6, "batch_size": 32, "gradient_accumulation": 16, "steps": 357},
            ),
            (
                "ppo",
                {
                    "learning_rate": 9.65e-6,
                    "kl_coef": 0.001,
                    "rollout_batch_size": 512,
                    "minibatch_size": 64,
                    "iterations": 500,
                    "max_new_tokens": 512,
                    "value": "model",
                },
            ),
        ),
    ),
    "tulu3": Pipeline(
        # The 8B model's: SFT two epochs of 939k at 5e-6, linear, batches of 128; length-normalised DPO with beta 5 at
        # 5e-7, batches of 128, one epoch of 272k pairs; then reinforcement learning with verifiable rewards, by PPO
        # there and, in its release 3.1 and here, by GRPO: 5e-7, beta 0.01, 16 answers to each of 48 prompts. The reward
        # here is the share of checkable constraints that an answer meets, one of the paper's three.
        "Lambert et al. 2024, arXiv:2411.15124",
        (
            (
                "sft",
                {
                    "learning_rate": 5e-6,
                    "batch_size": 8,
                    "gradient_accumulation": 16,
                    "steps": 14_670,
                    "warmup_fraction": 0.03,
                },
            ),
            (
                "dpo",
                {
                    "loss_type": "sigmoid_norm",
                    "beta": 5.0,
                    "learning_rate": 5e-7,
                    "batch_size": 8,
                    "gradient_accumulation": 16,
                    "steps": 2_120,
                },
            ),
            (
                "grpo",
                {
                    "reward": "constraints",
                    "learning_rate": 5e-7,
                    "beta": 0.01,
                    "group_size": 16,
                    "rollout_batch_size": 768,
                    "minibatch_size": 768,
                    "gradient_accumulation": 48,
                    "iterations": 2_000,
                    "max_new_tokens": 512,
                },
            ),
        ),
    ),
}
