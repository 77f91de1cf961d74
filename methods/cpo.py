"""Contrastive preference optimization: DPO without a reference, held in place by the likelihood of chosen answers.

Xu et al. 2024, arXiv:2401.08417: -log sigmoid(beta (log p(chosen) - log p(rejected))) - log p(chosen). The second term
is taken as the mean over the answer's tokens, as TRL does; as a sum, it would drown the first where answers are long.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from harness.method import tunable
from methods._pairs_method import PAIR_METRICS
from methods._reference_free import Objective, Outcome, ReferenceFreeMethod, ReferenceFreeParams, Side

__all__ = ["CPO", "CPOParams"]


class CPOParams(ReferenceFreeParams):
    """Settings of contrastive preference optimization."""

    beta: float = Field(
        0.1,
        gt=0,
        description="scale of the margin: the implicit reward is beta times the answer's log-probability (nats)",
        json_schema_extra=tunable(0.01, 0.5, log=True),
    )
    nll_coef: float = Field(
        1.0,
        ge=0,
        description="weight of the chosen answer's negative log-likelihood (nats a token), which keeps it likely; 0 "
        "leaves the margin alone",
    )


class CPO(ReferenceFreeMethod[CPOParams]):
    """Preference learning with one model in memory."""

    name = "cpo"
    summary = "contrastive preference optimization: DPO without a reference, plus the likelihood of chosen answers"
    paper = "Xu et al. 2024, arXiv:2401.08417"
    version = 2
    params = CPOParams
    logged: ClassVar[Mapping[str, str]] = {**PAIR_METRICS, "nll": "nll"}

    @staticmethod
    def objective(params: CPOParams) -> Objective:
        """The loss of arXiv:2401.08417 with these settings."""

        def loss(chosen: Side, rejected: Side) -> Outcome:
            from torch.nn.functional import logsigmoid

            margin = params.beta * (chosen.summed - rejected.summed)
            return Outcome(
                loss=-logsigmoid(margin) - params.nll_coef * chosen.mean,
                chosen_reward=params.beta * chosen.summed,
                rejected_reward=params.beta * rejected.summed,
                figures={"nll": -chosen.mean},
            )

        return loss
