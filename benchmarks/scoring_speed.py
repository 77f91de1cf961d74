"""How much faster than lm-eval's own `hf` model is `prefix-tree`? On the bundled model and official documents.

    python benchmarks/scoring_speed.py --data ../shared/data

Both score the same requests in one process, in turns; the ratio of their wall times is what to quote, and the median
of the pairs is printed. `hf` runs at the batch size that was fastest for a part of the work, with `logits_cache=False`:
that is the model whose scores are equal (see scoring_parity.py). For MMLU it runs once more with the cache, lm-eval's
default. Beside it stands the yardstick: distinct tokens scored a second against the tokens a second of a plain forward
pass over full batches, and that pass's share of the fastest matrix product measured here. For perplexity, where no
text is shared, the bound is printed too: `hf`'s time over that of the model's forward pass without any logits.
`--profile` prints where `prefix-tree` spends its time.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _scoring_work import WORK, bundled_model, hf, mirror, prefix_tree, requests_of
from lm_eval.api.instance import Instance

from harness.method import LoadedModel

DEFAULT = "hellaswag,truthfulqa_mc2,mmlu,gsm8k,wikitext"
BATCHES = {"loglikelihood": (1, 4, 16), "generate_until": (4, 16), "loglikelihood_rolling": (1,)}


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time."""
    wall, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - used


def _run(lm: Any, kind: str, requests: Sequence[Instance]) -> tuple[float, float]:
    return _seconds(lambda: getattr(lm, kind)(list(requests), disable_tqdm=True))


def _best_batch(loaded: LoadedModel, kind: str, requests: Sequence[Instance]) -> int:
    choices = BATCHES[kind]
    if len(choices) == 1:
        return choices[0]
    part = requests[:: max(1, len(requests) // 16)] if kind == "loglikelihood" else requests
    times = {b: _run(hf(loaded, b), kind, part)[0] for b in choices}
    return min(times, key=lambda b: times[b])


def _distinct(lm: Any, requests: Sequence[Instance]) -> int:
    """Tokens that `prefix-tree` computes for these requests."""
    from harness.measure.scoring._text import encode_pairs
    from harness.measure.scoring._tree import build_tree

    pairs = encode_pairs(lm.tokenizer, [r.args for r in requests], lm.prefix_token_id, lm.add_bos_token)
    tree = build_tree([(c + t)[:-1] for c, t in pairs])
    return sum(len(s.tokens) for s in tree.segments)


def _yardstick(loaded: LoadedModel) -> tuple[float, float]:
    """Tokens a second of a plain forward pass without logits (8 rows of 256), and its share of the matrix peak."""
    import torch

    model = loaded.model
    ids = torch.randint(0, 49000, (8, 256))
    with torch.inference_mode():
        model(ids, use_cache=False, logits_to_keep=1)
        speed = ids.numel() / min(_seconds(lambda: model(ids, use_cache=False, logits_to_keep=1))[0] for _ in range(3))
        a, b = (torch.randn(2048, 2048, dtype=model.dtype) for _ in range(2))
        a @ b
        peak = 2 * 2048**3 / min(_seconds(lambda: a @ b)[0] for _ in range(5))
    weights = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    return speed, 2 * weights * speed / peak


def _forward_only(loaded: LoadedModel, ours: Any, requests: Sequence[Instance]) -> float:
    """Seconds of the forward pass over the windows of these rolling requests, with no logits made."""
    import torch

    windows: list[list[int]] = []
    score = ours.engine.score

    def noted(pairs: Sequence[Any], progress: Any = None) -> list[tuple[float, bool]]:
        windows.extend(list(tokens[:-1]) for tokens, _ in pairs)
        return [(0.0, False)] * len(pairs)

    ours.engine.score = noted
    ours.loglikelihood_rolling(list(requests))
    ours.engine.score = score

    def work() -> None:
        with torch.inference_mode():
            for window in windows:
                loaded.model(torch.tensor([window]), use_cache=False, logits_to_keep=1)

    return _seconds(work)[0]


def _print_profile(ours: Any, kind: str, requests: Sequence[Instance]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        _run(ours, kind, requests)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


def _measure(loaded: LoadedModel, dtype: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    work = WORK[name].with_limit(options.limit)
    requests = requests_of(work, options.data)
    ours = prefix_tree(loaded)
    _run(ours, work.kind, requests[:2])
    batch = options.hf_batch or _best_batch(loaded, work.kind, requests)
    pairs = []
    for _ in range(options.pairs):
        mine = _run(ours, work.kind, requests)
        theirs = _run(hf(loaded, batch), work.kind, requests)
        pairs.append({"ours": mine, "hf": theirs})
        print(f"  {name} {dtype}: ours {mine[0]:.1f} s, hf {theirs[0]:.1f} s (batch {batch})", file=sys.stderr)
    row: dict[str, Any] = {
        "work": name,
        "dtype": dtype,
        "requests": len(requests),
        "hf_batch": batch,
        "ratio": statistics.median(p["hf"][0] / p["ours"][0] for p in pairs),
        "ratio_cpu": statistics.median(p["hf"][1] / p["ours"][1] for p in pairs),
        "ours_s": statistics.median(p["ours"][0] for p in pairs),
        "hf_s": statistics.median(p["hf"][0] for p in pairs),
        "pairs": pairs,
    }
    if work.kind == "loglikelihood":
        row["distinct_tokens_per_s"] = _distinct(ours, requests) / row["ours_s"]
    if work.kind == "loglikelihood_rolling":
        row["bound"] = row["hf_s"] / _forward_only(loaded, ours, requests)
    if options.profile:
        _print_profile(ours, work.kind, requests)
    if name == "mmlu":
        # One-token answers, four to a prompt: lm-eval's cache of logits spares three of four passes.
        row["ratio_cached"] = _run(hf(loaded, batch, logits_cache=True), work.kind, requests)[0] / row["ours_s"]
    return row


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=mirror(), help="a mirror folder of official documents, or bundled")
    parser.add_argument("--work", default=DEFAULT, help=f"which of {', '.join(WORK)} (default: %(default)s)")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--limit", type=int, help="documents a task")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; two collapse on a busy machine")
    parser.add_argument("--hf-batch", type=int, help="batch size of hf, where the best is known (default: it is found)")
    parser.add_argument("--profile", action="store_true", help="print the operations prefix-tree spends its time in")
    parser.add_argument("--json", type=Path, help="also write every figure here, after each row")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes.split(","):
        loaded = bundled_model(dtype, options.threads)
        speed, share = _yardstick(loaded)
        print(f"{dtype}: a plain forward pass makes {speed:.0f} tokens/s, {share:.0%} of the matrix peak", flush=True)
        for name in options.work.split(","):
            row = {**_measure(loaded, dtype, name, options), "forward_tokens_per_s": speed, "forward_share": share}
            rows.append(row)
            rate = row.get("distinct_tokens_per_s")
            yard = f", {rate:.0f} distinct tokens/s = {rate / speed:.2f} of the forward pass" if rate else ""
            bound = f", {row['bound']:.2f}x if logits cost nothing" if "bound" in row else ""
            cached = f", {row['ratio_cached']:.1f}x with its cache on" if "ratio_cached" in row else ""
            print(
                f"{name} {dtype}: {row['ratio']:.1f}x wall ({row['ratio_cpu']:.1f}x CPU) of hf batch {row['hf_batch']}"
                f"{cached}{bound}{yard}",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
