"""Preferences made by sampling: answers of the policy, ranked by a reward model, a verifier or a judge.

The data of iterative DPO (Xu et al. 2023, arXiv:2312.16682); with the policy as its own judge, of self-rewarding.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from harness._turns import turn
from methods._making import Prompt, Tally
from methods._sampled import Choice, Sample, SampledMethod, SampledParams

__all__ = ["GeneratePreferences", "GeneratePreferencesParams"]


class GeneratePreferencesParams(SampledParams):
    """Settings of making preferences."""

    pairs: Literal["best_worst", "all"] = Field(
        "best_worst", description="pairs of a prompt: its best with its worst answer, or each with every other"
    )
    margin: float = Field(0.0, ge=0, description="rewards that differ by no more than this make no pair")


class GeneratePreferences(SampledMethod[GeneratePreferencesParams]):
    """Pairs of the policy's own answers, as preferences.

    Counted beside what `SampledMethod` counts: `ties` (pairs with equal rewards, left out), `within_margin` (pairs that
    differ by `margin` or less, left out), `prompts_alone` (fewer than two different usable answers). Further columns of
    a row: `chosen_reward`, `rejected_reward`.
    """

    name = "generate_preferences"
    summary = "pairs of sampled answers, ranked by a reward model, a verifier or a judge, as preferences"
    paper = "Xu et al. 2023, arXiv:2312.16682; with the policy as judge Yuan et al. 2024, arXiv:2401.10020"
    params = GeneratePreferencesParams
    makes = "preferences"
    counted = (*SampledMethod.counted, "ties", "within_margin", "prompts_alone")
    advice = "lower margin, raise n, or raise max_new_tokens, so that answers end"

    def choose(
        self, prompt: Prompt, samples: Sequence[Sample], params: GeneratePreferencesParams, tally: Tally
    ) -> Choice:
        """Every pair that is asked for and far enough apart, the better answer first."""
        if len(samples) < 2:
            tally.counts["prompts_alone"] += 1
            return Choice()
        choice = Choice()
        wanted = [(samples[0], samples[-1])] if params.pairs == "best_worst" else itertools.combinations(samples, 2)
        for better, worse in wanted:
            if better.reward == worse.reward:
                tally.counts["ties"] += 1
            elif better.reward - worse.reward <= params.margin:
                tally.counts["within_margin"] += 1
            else:
                choice.rows.append(
                    {
                        "chosen": [turn("assistant", better.text)],
                        "rejected": [turn("assistant", worse.text)],
                        "chosen_reward": better.reward,
                        "rejected_reward": worse.reward,
                    }
                )
                choice.kept += [better.number, worse.number]
                choice.rewards.append(better.reward)
        return choice
