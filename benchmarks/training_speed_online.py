"""How long does a step of PPO and of GRPO take here, and how long by TRL's own trainers? Side by side, in turns.

    python benchmarks/training_speed_online.py [--methods ppo grpo] [--precisions float32 bfloat16] [--steps 8]

A step is everything from prompts to new weights: sampling, scoring by all models, the update. Both sides run in a
process of their own, on one thread, with the same model, reward model, prompts and settings; they take steps in turns,
so that whatever else the machine does falls on both. The end token is one that the model never says: every answer is
as long as the limit, and both sample equally many tokens. The first step, which loads and allocates, is not counted.

PPO is compared with TRL 1.12's, the last there was, which trains a value model: so does ours here. `--value head` gives
ours its default, a value head on the policy, in place of it. GRPO is compared with the installed release's, one update
a batch. In bfloat16 TRL trains under autocast, its frozen models are bfloat16, and PPO's sampling is in the type that
was quicker in a trial beforehand.

The ratio is TRL's time over ours, the geometric mean over the steps with its 95 % t interval, in wall time and in CPU
time, which a busy machine disturbs less. Exit code 1 where the CPU ratio is below `--target`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _intervals import ratio
from _plain_online import FAR, OLD_TRL
from _plain_runs import bundled_prompts, old_trl, prepare, running

# Common to both sides of both methods; the sizes are the demo suite's, but for the batch.
SIZES: dict[str, dict[str, int]] = {
    "bundled": {"rows": 16, "minibatch": 8, "tokens": 32, "group": 4},
    "tiny": {"rows": 16, "minibatch": 8, "tokens": 16, "group": 4},
}
NEVER = {"bundled": "<reponame>", "tiny": "\u00ff"}
"""A token that the model has and does not say."""


def settings_of(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Of our method, complete enough for TRL's side to be told the same."""
    size = SIZES[options.model] | {k: v for k, v in (("rows", options.rows), ("tokens", options.tokens)) if v}
    common = {
        "learning_rate": 1e-6,
        "schedule": "constant",
        "warmup": 0.0,
        "temperature": 1.0,
        "max_new_tokens": size["tokens"],
        "clip_range": 0.2,
        "rollout_batch_size": size["rows"],
        "max_kl": None,
        "iterations": options.steps + 1,
    }
    if method == "ppo":
        return common | {
            "minibatch_size": size["minibatch"],
            "epochs": options.epochs,
            "max_grad_norm": FAR,
            "kl_coef": 0.05,
            "gamma": 1.0,
            "lam": 0.95,
            "value": options.value,
            "value_coef": 0.1,
            "value_clip_range": 0.2,
            "missing_eos_penalty": 1.0,
            "normalize_reward": False,
        }
    return common | {
        "minibatch_size": size["rows"],
        "group_size": size["group"],
        "epochs": 1,
        "max_grad_norm": 1.0,
        "beta": 0.04,
        "loss_per": "sequence",
        "scale_rewards": "group",
    }


def measure(method: str, precision: str, models: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Steps of both, in turns."""
    work = {
        "method": method,
        "folders": models,
        "prompts": bundled_prompts(),
        "settings": settings_of(method, options),
        "seed": 0,
        "precision": precision,
        "threads": 1,
        "paced": True,
        "never_ends": NEVER[options.model],
    }
    libraries = old_trl(options.trl) if method == "ppo" else None
    folder = options.folder
    times: dict[str, list[float]] = {f"{side}_{clock}": [] for side in ("ours", "trl") for clock in ("wall_s", "cpu_s")}
    with (
        running({**work, "side": "ours"}, folder / f"{method}-{precision}-ours") as ours,
        running({**work, "side": f"{method}_trl"}, folder / f"{method}-{precision}-trl", libraries) as theirs,
    ):
        next(ours), next(theirs)
        for step in range(options.steps):
            sides = [("ours", ours), ("trl", theirs)]
            for name, run in sides if step % 2 == 0 else reversed(sides):
                found = next(run)
                for clock in ("wall_s", "cpu_s"):
                    times[f"{name}_{clock}"].append(found[clock])
    return {"method": method, "precision": precision, **times}


def show(row: dict[str, Any]) -> float:
    """Print a line; the ratio of CPU times."""
    import statistics

    walls = ratio(row["trl_wall_s"], row["ours_wall_s"])
    cpus = ratio(row["trl_cpu_s"], row["ours_cpu_s"])
    medians = [statistics.median(row[name]) for name in ("ours_cpu_s", "trl_cpu_s")]
    said = [f"{r[0]:5.2f}x ({r[1]:.2f} to {r[2]:.2f})" for r in (walls, cpus)]
    print(
        f"{row['method']:6} {row['precision']:9} {medians[0]:9.2f} {medians[1]:9.2f} {said[0]:>22} {said[1]:>22}",
        flush=True,
    )
    return cpus[0]


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="bundled")
    parser.add_argument("--methods", nargs="+", choices=["ppo", "grpo"], default=["ppo", "grpo"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=8, help="counted steps of each side, 2 at least")
    parser.add_argument("--rows", type=int, help="answers a step (default: 16); a multiple of 8")
    parser.add_argument("--tokens", type=int, help="tokens of an answer (default: 32, tiny 16)")
    parser.add_argument("--epochs", type=int, default=1, help="of PPO's updates")
    parser.add_argument("--value", choices=["model", "head"], default="model", help="our PPO's value function")
    parser.add_argument("--target", type=float, default=1.5, help="ratio below which the exit code is 1")
    parser.add_argument("--trl", type=Path, help=f"folder with trl {OLD_TRL} (default: in the cache)")
    parser.add_argument("--folder", type=Path, help="keep models here, and use them again if they are there")
    parser.add_argument("--json", type=Path, help="also write every time here")
    options = parser.parse_args()
    rows = []
    reached = True
    with tempfile.TemporaryDirectory(prefix="online-") as scratch:
        options.folder = options.folder or Path(scratch)
        models = prepare(options.model, options.folder)
        print(f"{'method':6} {'precision':9} {'ours, s':>9} {'TRL, s':>9} {'wall':>22} {'CPU':>22}")
        for method in options.methods:
            for precision in options.precisions:
                rows.append(measure(method, precision, models, options))
                reached &= show(rows[-1]) >= options.target
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
