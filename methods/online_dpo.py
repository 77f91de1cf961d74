"""Online DPO: pairs of the policy's own answers, the better one chosen by a reward, learned by DPO's loss."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from harness.method import tunable
from methods._online import OnlineMethod, OnlineParams

if TYPE_CHECKING:
    from methods._online_objective import Objective

__all__ = ["OnlineDPO", "OnlineDPOParams"]


class OnlineDPOParams(OnlineParams):
    """Settings of online DPO."""

    group_size: int = Field(2, ge=2, le=2, description="two responses to each prompt, of which one is chosen")
    beta: float = Field(
        0.1,
        gt=0,
        description="strength of the pull to the reference: the implicit reward is beta times the log-ratio (nats)",
        json_schema_extra=tunable(0.01, 0.5, log=True),
    )
    loss_type: Literal["sigmoid", "ipo"] = Field(
        "sigmoid", description="sigmoid: DPO's; ipo: squared, on log-ratios per token (arXiv:2310.12036)"
    )

    @model_validator(mode="after")
    def _pairs_are_judged_as_they_are(self) -> Self:
        if self.reward == "judge" and self.missing_eos_penalty > 0:
            raise ValueError(
                "a judge prefers one of two answers, which leaves nothing to take missing_eos_penalty from"
            )
        return self


class OnlineDPO(OnlineMethod[OnlineDPOParams]):
    """DPO on answers of the policy as it is now, so that what it learns from never grows old.

    Of a reward model or a verifier the better score is chosen, of a judge the answer it prefers, asked in both orders.
    Logged beside what every such method logs: `rewards_margin` and `rewards_accuracy` (of the implicit rewards),
    `decided` (the fraction of pairs that are not a tie: ties teach nothing); no `reward` with a judge.
    """

    name = "online_dpo"
    summary = "DPO on pairs of the policy's own answers, chosen by a reward as it learns"
    paper = "Guo et al. 2024, arXiv:2402.04792"
    version = 2
    params = OnlineDPOParams

    def objective(self, params: OnlineDPOParams) -> "Objective":
        """See `OnlineMethod`."""
        from methods._online_dpo_objective import OnlinePairs

        return OnlinePairs(params)
