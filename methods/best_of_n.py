"""Best of n: several answers to each prompt, the one with the highest reward is kept.

Training on what it keeps teaches the policy to give at once what it would find in n tries.
"""

import math
from collections.abc import Sequence

from harness._turns import turn
from harness.method import Context, Inputs
from methods._making import Prompt, Tally, Writer
from methods._making_method import Maker
from methods._sampled import Choice, Sample, SampledMethod, SampledParams

__all__ = ["BestOfN", "BestOfNParams", "expected_best"]


class BestOfNParams(SampledParams):
    """Settings of best-of-n sampling."""


class BestOfN(SampledMethod[BestOfNParams]):
    """The best of n samples, as instructions.

    Logged and among the metrics: `best_of_k` for k = 1 … n, the expected reward of the best of k samples, by the
    estimator without bias of Nakano et al. (2021), over all samples, usable or not. Among the metrics: `kl_bound`,
    log n - (n - 1) / n nats, which the KL divergence of the best of n from the policy does not exceed (Stiennon et al.
    2020; that it is a bound: arXiv:2401.01879).
    """

    name = "best_of_n"
    summary = "the best of n sampled answers by a reward, as instructions"
    paper = "Stiennon et al. 2020, arXiv:2009.01325; Nakano et al. 2021, arXiv:2112.09332"
    params = BestOfNParams
    makes = "instructions"

    def maker(self, inputs: Inputs, writer: Writer, params: BestOfNParams, context: Context) -> Maker:
        """See `MakingMethod`."""
        writer.tally.figures["kl_bound"] = math.log(params.n) - (params.n - 1) / params.n
        return super().maker(inputs, writer, params, context)

    def choose(self, prompt: Prompt, samples: Sequence[Sample], params: BestOfNParams, tally: Tally) -> Choice:
        """The first."""
        if not samples:
            return Choice()
        best = samples[0]
        row = {"completion": [turn("assistant", best.text)], "reward": best.reward}
        return Choice([row], [best.number], [best.reward])

    def seen(self, rewards: Sequence[Sequence[float]], tally: Tally) -> dict[str, float]:
        """The expected reward of the best of k, over this batch; over all batches as a metric."""
        by_prompt = [expected_best(own) for own in rewards]
        before = tally.counts["samples"] // len(rewards[0]) - len(rewards)
        found = {f"best_of_{k}": math.fsum(column) for k, column in enumerate(zip(*by_prompt, strict=True), start=1)}
        for name, added in found.items():
            known = tally.figures.get(name, 0.0)
            tally.figures[name] = (known * before + added) / (before + len(rewards))
        return {name: added / len(rewards) for name, added in found.items()}


def expected_best(rewards: Sequence[float]) -> list[float]:
    """The expected highest of k of these n rewards, drawn without replacement, for k = 1 … n.

    An estimate without bias of what the best of k fresh samples earns: the i-th smallest is the highest of k in
    C(i - 1, k - 1) of the C(n, k) choices (arXiv:2112.09332).
    """
    ordered, n = sorted(rewards), len(rewards)
    return [
        math.fsum(reward * (math.comb(i, k - 1) / math.comb(n, k)) for i, reward in enumerate(ordered))
        for k in range(1, n + 1)
    ]
