"""Rejection sampling fine-tuning (RFT): every distinct answer that is good enough is kept, several to a prompt."""

from collections.abc import Sequence

from pydantic import Field

from harness._turns import turn
from harness.method import tunable
from methods._making import Prompt, Tally
from methods._sampled import Choice, Sample, SampledMethod, SampledParams

__all__ = ["RejectionSampling", "RejectionSamplingParams"]


class RejectionSamplingParams(SampledParams):
    """Settings of rejection sampling."""

    n: int = Field(8, ge=1, le=256, description="answers sampled to each prompt")
    threshold: float = Field(
        1.0,
        description="reward from which on an answer is kept; a verifier gives 1 to what is right",
        json_schema_extra=tunable(0.0, 1.0),
    )
    keep: int = Field(4, ge=1, description="answers kept of a prompt at most, those with the highest reward")


class RejectionSampling(SampledMethod[RejectionSamplingParams]):
    """Distinct answers with a reward of `threshold` or more, as instructions; `rejected` counts the others."""

    name = "rejection_sampling"
    summary = "all distinct sampled answers that are good enough, as instructions (RFT)"
    paper = "Yuan et al. 2023, arXiv:2308.01825"
    params = RejectionSamplingParams
    makes = "instructions"
    counted = (*SampledMethod.counted, "rejected", "prompts_solved")
    advice = "lower threshold, raise n, or raise max_new_tokens, so that answers end"

    def choose(
        self, prompt: Prompt, samples: Sequence[Sample], params: RejectionSamplingParams, tally: Tally
    ) -> Choice:
        """Those above the threshold, as many as are wanted."""
        good = [s for s in samples if s.reward >= params.threshold]
        tally.counts["rejected"] += len(samples) - len(good)
        good = good[: params.keep]
        tally.counts["prompts_solved"] += bool(good)
        rows = [{"completion": [turn("assistant", s.text)], "reward": s.reward} for s in good]
        return Choice(rows, [s.number for s in good], [s.reward for s in good])
