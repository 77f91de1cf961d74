"""Are our latency and memory figures right? Side by side with a plain timing loop, and with optimum-benchmark.

    python benchmarks/profile_check.py
    pip install optimum-benchmark==0.6.0    # for its column; not needed by anything else

One model, batch size 1, fixed lengths, one thread, one after the other on one machine: `harness.measure.profile` (a
fresh process), a hand-written loop over `model.generate` in a fresh process that shares no code with it, and
optimum-benchmark's inference scenario. Memory is each process's high-water mark.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.measure.profile import measure_profile
from harness.models import resolve_model
from harness.targets import Target

FIGURES = ("ttft_ms", "tpot_ms", "e2e_ms", "peak_rss_mb")

# On purpose nothing of ours: what a person would write to check.
LOOP = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM
folder, dtype, prompt, new, repeats = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
ids = torch.randint(100, 40000, (1, prompt), generator=torch.Generator().manual_seed(1))
def run(n):
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=n, max_new_tokens=n, do_sample=False)
    return (time.perf_counter() - start) * 1e3
run(new); run(1)
first, whole = [run(1) for _ in range(repeats)], [run(new) for _ in range(repeats)]
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024
print(json.dumps({"ttft_ms": first, "e2e_ms": whole, "peak_rss_mb": [peak]}))
"""

OPTIMUM = """
import json, sys
from optimum_benchmark import Benchmark, BenchmarkConfig, InferenceConfig, ProcessConfig, PyTorchConfig
if __name__ == "__main__":
    folder, dtype, prompt, new, repeats = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    config = BenchmarkConfig(
        name="check",
        launcher=ProcessConfig(),
        scenario=InferenceConfig(
            latency=True, memory=True, iterations=repeats, duration=0, warmup_runs=2,
            input_shapes={"batch_size": 1, "sequence_length": prompt},
            generate_kwargs={"max_new_tokens": new, "min_new_tokens": new},
        ),
        backend=PyTorchConfig(
            model=folder, library="transformers", task="text-generation", device="cpu", torch_dtype=dtype,
            no_weights=False, inter_op_num_threads=1, intra_op_num_threads=1,
        ),
    )
    report = Benchmark.launch(config).to_dict()
    print(json.dumps({
        "ttft_ms": [1e3 * v for v in report["prefill"]["latency"]["values"]],
        "decode_ms": [1e3 * v for v in report["decode"]["latency"]["values"]],
        "peak_rss_mb": [max(report[p]["memory"]["max_ram"] for p in ("load_model", "prefill", "decode")) * 1e6 / 2**20],
    }))
"""


def _script(text: str, arguments: list[str]) -> dict[str, list[float]] | None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "check_one.py"
        file.write_text(text)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, str(file), *arguments],
            check=False,
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        print(done.stderr[-3000:], file=sys.stderr)
        return None
    found: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _ours(folder: Path, dtype: str, options: argparse.Namespace) -> dict[str, float]:
    settings = {"prompt_tokens": options.prompt, "new_tokens": options.new, "repeats": options.repeats, "warmup": 2}
    target = Target.model_validate({"name": "check", "dtype": dtype})
    rows = measure_profile(folder, target, {**settings, "batch_sizes": [1]}, 1200)
    return {
        name: statistics.median(float(r["value"]) for r in rows if r["metric"] == name and r["setting"] == "batch=1")
        for name in FIGURES
    }


def _figures(found: dict[str, list[float]], new: int) -> dict[str, float]:
    middle = {name: statistics.median(values) for name, values in found.items()}
    whole = middle["e2e_ms"] if "e2e_ms" in middle else middle["ttft_ms"] + middle["decode_ms"]
    each = (whole - middle["ttft_ms"]) / (new - 1)
    return {"ttft_ms": middle["ttft_ms"], "tpot_ms": each, "e2e_ms": whole, "peak_rss_mb": middle["peak_rss_mb"]}


def main() -> None:
    """Measure and print one table a dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens generated")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    folder = resolve_model(options.model)
    for dtype in options.dtypes.split(","):
        arguments = [str(folder), dtype, *map(str, (options.prompt, options.new, options.repeats))]
        columns: dict[str, Any] = {"ours": _ours(folder, dtype, options)}
        scripts = {"plain loop": LOOP} | (
            {"optimum-benchmark": OPTIMUM} if importlib.util.find_spec("optimum_benchmark") else {}
        )
        for name, text in scripts.items():
            if (found := _script(text, arguments)) is not None:
                columns[name] = _figures(found, options.new)
        print(f"{dtype:>12} " + " ".join(f"{name:>24}" for name in columns))
        for figure in FIGURES:
            shown = (f"{c[figure]:.1f} ({c[figure] / columns['ours'][figure]:.2f})" for c in columns.values())
            print(f"{figure:>12} " + " ".join(f"{s:>24}" for s in shown), flush=True)


if __name__ == "__main__":
    main()
