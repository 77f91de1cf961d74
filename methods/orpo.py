"""ORPO: fine-tuning on chosen answers and the odds ratio against rejected ones, in one stage.

Hong, Lee & Thorne 2024, arXiv:2403.07691: with p the geometric mean of an answer's token probabilities and odds
p / (1 - p), the loss is -log p(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected)).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from harness.method import tunable
from methods._pairs_method import PAIR_METRICS
from methods._reference_free import Objective, Outcome, ReferenceFreeMethod, ReferenceFreeParams, Side

if TYPE_CHECKING:
    import torch

__all__ = ["ORPO", "ORPOParams"]

_CERTAIN = -1e-6
"""Largest mean log-probability (nats) that enters 1 - p: at 0 the odds and their gradient are infinite."""


class ORPOParams(ReferenceFreeParams):
    """Settings of odds ratio preference optimization."""

    learning_rate: float = Field(
        8e-6,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 1e-4, log=True),
    )
    beta: float = Field(
        0.1,
        ge=0,
        description="weight of the odds ratio (the paper's lambda) beside the likelihood of chosen answers; 0 is "
        "supervised fine-tuning",
        json_schema_extra=tunable(0.1, 1.0, log=True),
    )


class ORPO(ReferenceFreeMethod[ORPOParams]):
    """Preference learning that starts from a base model: it needs neither a reference nor an SFT stage before it."""

    name = "orpo"
    summary = "odds ratio preference optimization: supervised fine-tuning and preferences in one stage, no reference"
    paper = "Hong et al. 2024, arXiv:2403.07691"
    version = 2
    params = ORPOParams
    logged: ClassVar[Mapping[str, str]] = {**PAIR_METRICS, "nll": "nll", "log_odds_ratio": "log_odds_ratio"}

    @staticmethod
    def objective(params: ORPOParams) -> Objective:
        """The loss of arXiv:2403.07691 with these settings."""

        def loss(chosen: Side, rejected: Side) -> Outcome:
            from torch.nn.functional import logsigmoid

            ratio = _log_odds(chosen.mean) - _log_odds(rejected.mean)
            return Outcome(
                loss=-chosen.mean - params.beta * logsigmoid(ratio),
                chosen_reward=params.beta * chosen.mean,
                rejected_reward=params.beta * rejected.mean,
                figures={"nll": -chosen.mean, "log_odds_ratio": ratio},
            )

        return loss


def _log_odds(mean: "torch.Tensor") -> "torch.Tensor":
    import torch

    return mean - torch.log(-torch.expm1(mean.clamp(max=_CERTAIN)))
