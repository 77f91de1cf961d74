"""SimPO: the reward is an answer's mean log-probability, and chosen answers must lead by a margin.

Meng et al. 2024, arXiv:2405.14734: -log sigmoid(beta (mean log p(chosen) - mean log p(rejected)) - gamma).
"""

from pydantic import Field

from harness.method import tunable
from methods._reference_free import Objective, Outcome, ReferenceFreeMethod, ReferenceFreeParams, Side

__all__ = ["SimPO", "SimPOParams"]


class SimPOParams(ReferenceFreeParams):
    """Settings of SimPO."""

    learning_rate: float = Field(
        1e-6,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA. Nothing but a small one keeps "
        "the policy near where it began",
        json_schema_extra=tunable(3e-7, 3e-5, log=True),
    )
    beta: float = Field(
        2.0,
        gt=0,
        description="scale of the reward: beta times the mean log-probability of the answer's tokens (nats a token)",
        json_schema_extra=tunable(2.0, 10.0, log=True),
    )
    gamma: float = Field(
        1.0,
        ge=0,
        description="margin by which the reward of chosen answers is to lead (same unit as the reward)",
        json_schema_extra=tunable(0.3, 1.6),
    )


class SimPO(ReferenceFreeMethod[SimPOParams]):
    """Preference learning with one model in memory, on rewards that do not grow with length."""

    name = "simpo"
    summary = "simple preference optimization: length-normalised rewards with a margin, no reference"
    paper = "Meng et al. 2024, arXiv:2405.14734"
    version = 2
    params = SimPOParams

    @staticmethod
    def objective(params: SimPOParams) -> Objective:
        """The loss of arXiv:2405.14734 with these settings."""

        def loss(chosen: Side, rejected: Side) -> Outcome:
            from torch.nn.functional import logsigmoid

            good, bad = params.beta * chosen.mean, params.beta * rejected.mean
            return Outcome(-logsigmoid(good - bad - params.gamma), good, bad)

        return loss
