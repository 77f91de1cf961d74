"""REINFORCE leave-one-out: an answer's baseline is the mean reward of the other answers to its prompt."""

from typing import TYPE_CHECKING

from pydantic import Field

from harness.method import tunable
from methods._online import OnlineMethod, OnlineParams

if TYPE_CHECKING:
    from methods._online_objective import Objective

__all__ = ["RLOO", "RLOOParams"]


class RLOOParams(OnlineParams):
    """Settings of RLOO."""

    kl_coef: float = Field(
        0.05,
        ge=0,
        description="KL penalty in the reward, reward per nat of a whole response; 0: no reference is held",
        json_schema_extra=tunable(0.01, 0.3, log=True),
    )
    normalize_advantages: bool = Field(
        False, description="advantages of a batch to zero mean and unit variance; the paper's are not"
    )
    clip_range: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="the ratio of whole responses is clipped to 1 ± this, where there are several steps",
    )


class RLOO(OnlineMethod[RLOOParams]):
    """Policy gradient of whole responses, unbiased, without a value model.

    The ratio to the policy that sampled makes the steps after the first of a batch sound; in the first it is 1, and the
    gradient is REINFORCE's. Logged beside what every such method logs: `clip_fraction` (of responses), `advantage_std`.
    """

    name = "rloo"
    summary = "REINFORCE with the other answers to a prompt as baseline"
    paper = "Ahmadian et al. 2024, arXiv:2402.14740; Kool et al. 2019"
    version = 2
    params = RLOOParams

    def objective(self, params: RLOOParams) -> "Objective":
        """See `OnlineMethod`."""
        from methods._rloo_objective import LeaveOneOut

        return LeaveOneOut(params)
