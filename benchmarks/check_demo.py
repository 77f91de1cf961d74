"""Checks what `make demo` must show: PPO raises the gold reward over SFT by a stated margin while its KL stays bounded.

    python benchmarks/check_demo.py

The documents are the final half of the held-out prompts, which neither training nor tuning has seen.
"""

import sys
from pathlib import Path

from harness.stats import paired_difference
from harness.store import Store
from harness.suite import load_suite

__all__ = ["main"]

MARGIN = 0.05
"""Gold reward that PPO must gain over the SFT policy it starts from, in the mean over documents."""
KL_BOUND = 15.0
"""The largest KL to the base model, in nats a response, that counts as bounded."""


def main() -> int:
    """Print the figures; 1 where they miss."""
    store, sweep = Store(Path("results")), load_suite(Path("suites/dpo_vs_ppo.yaml")).sweep_id()
    scores: dict[tuple[str, str], dict[str, float]] = {}
    rows = store.query(
        "SELECT t.recipe, s.metric, s.document, avg(s.score) FROM trials t JOIN samples s USING (artifact) "
        "WHERE t.sweep = ? AND t.phase = 'final' AND t.state = 'complete' AND s.task = 'gold' AND s.half = 'final' "
        "GROUP BY ALL",
        [sweep],
    ).rows()
    for recipe, metric, document, score in rows:
        scores.setdefault((recipe, metric), {})[document] = score
    gain = paired_difference(scores["ppo", "gold_reward"], scores["sft", "gold_reward"])
    kl = scores["ppo", "kl"]
    mean_kl = sum(kl.values()) / len(kl)
    print(
        f"PPO over SFT in gold reward: {gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}], at least {MARGIN} wanted; "
        f"KL to base {mean_kl:.1f} nats, at most {KL_BOUND:.0f} wanted"
    )
    return 0 if gain.value >= MARGIN and mean_kl <= KL_BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
