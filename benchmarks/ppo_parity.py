"""Does our PPO learn as TRL's did? The same run by both, with several seeds each, and their learning curves.

    python benchmarks/ppo_parity.py                      # a tiny model, 6 seeds each, minutes
    python benchmarks/ppo_parity.py --model bundled      # the bundled 135M model, an hour on one core

TRL had PPO until 1.12 (`trl.experimental.ppo`); that release is installed into a folder of its own, without its
dependencies, and runs on this environment's torch and transformers. Both get one policy, one reward model (trained here
by `reward_model`), the bundled prompts and the same settings, in fp32 on one thread:

- what TRL's PPO lacks is off in ours: no gradient clipping, no bound on the distance from the sampling policy, scores
  as they are, no warm-up, one learning rate, a value model in place of a value head;
- TRL's AdamW gets our second beta, and a reward model that reads an answer as ours is read: closed by the chat
  template's own end, also where the length limit cut it.

What stays different is TRL's: it puts the score one place after the end token, where the value model gives one more
value, so that the last tokens' advantages have one more step of lambda in them (none at lambda 1, `--set lam=1`); its
old log-probabilities are the sampler's; it whitens by the unbiased variance.

For each fifth of the run the table has both means over seeds with their 95 % t intervals, and their difference with its
Welch interval: of the score (what is maximised but for the KL: reward less the penalty for an answer without an end),
the reward alone, the KL to the reference (summed over an answer, nats) and the part of answers that end by themselves.
Exit code 1 where two intervals of a mean do not overlap. `--ours gamma=0.5` changes one side, to see that the check
can fail.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _intervals import mean
from _plain_online import FAR
from _plain_runs import bundled_prompts, old_trl, prepare, running

METRICS = ("score", "reward", "kl", "eos_fraction")
WINDOWS = 5

SETTINGS: dict[str, Any] = {
    "schedule": "constant",
    "warmup": 0.0,
    "max_grad_norm": FAR,
    "temperature": 1.0,
    "gamma": 1.0,
    "lam": 0.95,
    "clip_range": 0.2,
    "value_clip_range": 0.2,
    "value": "model",
    "value_coef": 0.1,
    "kl_coef": 0.05,
    "max_kl": None,
    "missing_eos_penalty": 1.0,
    "normalize_reward": False,
    "whiten_rewards": False,
    "whiten_advantages": True,
    "epochs": 2,
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "iterations": 30,
        "rollout_batch_size": 32,
        "minibatch_size": 8,
        "max_new_tokens": 24,
        "learning_rate": 3e-4,
    },
    "bundled": {
        "iterations": 10,
        "rollout_batch_size": 16,
        "minibatch_size": 8,
        "max_new_tokens": 24,
        "learning_rate": 1e-5,
    },
}

Curves = list[dict[str, list[float]]]


def curve(side: str, seed: int, settings: dict[str, Any], options: argparse.Namespace, models: dict[str, str]) -> Any:
    """One run's figures by iteration."""
    work = {
        "side": side,
        "method": "ppo",
        "folders": models,
        "prompts": bundled_prompts(),
        "settings": settings,
        "seed": seed,
        "precision": "float32",
        "threads": 1,
        "paced": False,
        "never_ends": None,
    }
    libraries = old_trl(options.trl) if side == "ppo_trl" else None
    with running(work, options.folder / f"{side}-{seed}", libraries) as run:
        steps = list(run)
    if len(steps) != settings["iterations"]:
        raise SystemExit(f"{side} made {len(steps)} iterations of {settings['iterations']}")
    penalty = settings["missing_eos_penalty"]
    curves = [{**s, "score": s["reward"] - penalty * (1 - s["eos_fraction"])} for s in steps]
    found = {name: [step[name] for step in curves] for name in METRICS}
    last = {name: f"{values[-1]:.3f}" for name, values in found.items()}
    print(f"  {side} seed {seed}: {sum(s['cpu_s'] for s in steps[1:]):.0f} s, at its end {last}", file=sys.stderr)
    return found


def welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Difference of the means, and half width of its 95 % interval (Welch 1947)."""
    import numpy as np
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

    a, b = np.var(ours, ddof=1) / len(ours), np.var(theirs, ddof=1) / len(theirs)
    freedom = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1)) if a + b > 0 else 1.0
    return float(np.mean(ours) - np.mean(theirs)), float(stdtrit(freedom, 0.975) * (a + b) ** 0.5)


def compare(ours: Curves, theirs: Curves, iterations: int) -> int:
    """Print the table; how many pairs of intervals lie apart."""
    import numpy as np

    apart = 0
    print(f"{'metric':13} {'iterations':>10} {'ours':>17} {'TRL':>17} {'difference':>17}")
    for metric in METRICS:
        for part in np.array_split(np.arange(iterations), WINDOWS):
            mine, other = ([float(np.mean([run[metric][i] for i in part])) for run in side] for side in (ours, theirs))
            (a, wide), (b, broad), (gap, half) = mean(mine), mean(other), welch(mine, other)
            separate = abs(a - b) > wide + broad
            apart += separate
            said = [f"{value:8.3f} ±{spread:7.3f}" for value, spread in ((a, wide), (b, broad), (gap, half))]
            mark = "  APART" if separate else ""
            print(f"{metric:13} {f'{part[0] + 1}-{part[-1] + 1}':>10} {' '.join(said)}{mark}")
    return apart


def main() -> int:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="tiny")
    parser.add_argument("--seeds", type=int, default=6, help="runs of each side; 3 at least (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of both sides")
    parser.add_argument("--ours", nargs="+", default=[], metavar="NAME=VALUE", help="settings of our side alone")
    parser.add_argument("--trl", type=Path, help="folder with the old TRL (default: in the cache)")
    parser.add_argument("--folder", type=Path, help="keep models here, and use them again if they are there")
    parser.add_argument("--json", type=Path, help="also write every curve here")
    options = parser.parse_args()
    if options.seeds < 3:
        parser.error("fewer than 3 seeds hold no interval worth the name")

    def said(pairs: list[str]) -> dict[str, Any]:
        return {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in pairs)}

    settings = {**SETTINGS, **SIZES[options.model], **said(options.set)}
    mine = {**settings, **said(options.ours)}
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        options.folder = options.folder or Path(scratch)
        models = prepare(options.model, options.folder)
        ours: Curves = []
        theirs: Curves = []
        # In turns, so that a run cut short has equally many of both.
        for seed in range(options.seeds):
            ours.append(curve("ours", seed, mine, options, models))
            theirs.append(curve("ppo_trl", seed, settings, options, models))
            if options.json:
                options.json.write_text(json.dumps({"settings": settings, "ours": ours, "trl": theirs}, indent=1))
    print(f"{options.model} model, {options.seeds} seeds each, means with 95 % intervals over seeds")
    apart = compare(ours, theirs, settings["iterations"])
    print(f"{apart} of {len(METRICS) * WINDOWS} pairs of intervals lie apart")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
