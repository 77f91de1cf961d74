"""Does quantisation do what it claims, on a real model? Figures of the bundled one; exit 1 if a claim fails.

    python benchmarks/quantization_effects.py                        # some ten minutes
    python benchmarks/quantization_effects.py --only int8_bytes gptq_beats_rtn

Losses are nats per token of the completions of held-out instructions, as in `compression_effects.py`. One torch thread;
quantisation in float32, training in bfloat16 autocast.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import compression_effects
from compression_effects import Finding, Lab, effect

from harness.method import Context, Inputs, find_method
from harness.models import load_model, save_model

MB = 2**20
STEPS = {"steps": 40, "batch_size": 4, "learning_rate": 2e-5}

compression_effects.EFFECTS.clear()


def _run(lab: Lab, method: str, folder: Path, precision: Any = "float32", **settings: object) -> tuple[Any, Any]:
    """The model that a method leaves, loaded from its files as a measurement would, and its metrics."""
    known = find_method(method)
    inputs = Inputs({"policy": folder}, lambda _role, path: load_model(path), lab.calibration)
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(seed=lab.seed, scratch=Path(scratch), precision=precision, log=lambda *_: None)
        trained = known().run(inputs, known.params(**settings), context)
        assert trained.write is not None
        (Path(scratch) / "artifact").mkdir()
        trained.write(Path(scratch) / "artifact")
        return load_model(Path(scratch) / "artifact").model, trained.metrics


def _size(metrics: Any) -> str:
    return (
        f"{metrics['weight_bytes'] / MB:.0f} MB on disk, {metrics['resident_bytes'] / MB:.0f} in memory, "
        f"{metrics['bits_per_weight']:.2f} bits"
    )


@effect("int8_bytes")
def int8_bytes(lab: Lab) -> list[Finding]:
    """8 bits a weight: a quarter of the matrices' bytes, and next to the same loss; 4 bits: half of that."""
    loss = lab.original_loss
    found = [Finding("as it came", f"loss {loss:.3f}")]
    matrices = 4 * sum(m.weight.numel() for n, m in lab.original.model.named_modules() if n.endswith("_proj"))
    for scheme, part, worse in (
        ("int8_weight_only", 0.25, 0.02),
        ("int8_dynamic", 0.25, 0.1),
        ("int4_weight_only", 0.125, 9),
    ):
        model, metrics = _run(lab, "quantize", lab.folder, scheme=scheme)
        after = lab.loss(model)
        small = all(
            metrics[f"{kind}_bytes_before"] - metrics[f"{kind}_bytes"] > (1 - part) * 0.97 * matrices
            for kind in ("weight", "resident")
        )
        found += [
            Finding(f"{scheme}, size", _size(metrics), small),
            Finding(f"{scheme}, loss", f"loss {after:.3f} ({after - loss:+.3f})", after - loss < worse),
        ]
    return found


@effect("gptq_beats_rtn")
def gptq_beats_rtn(lab: Lab) -> list[Finding]:
    """4 bits, groups of 64: GPTQ is nearer than rounding to nearest, with and without a zero point."""
    found = [Finding("as it came", f"loss {lab.original_loss:.3f}")]
    for symmetric in (True, False):
        nearest = lab.loss(_run(lab, "quantize", lab.folder, scheme="int4_weight_only", symmetric=symmetric)[0])
        settings: dict[str, object] = {"scheme": "gptq_w4", "symmetric": symmetric, "calibration_rows": 64}
        model, metrics = _run(lab, "quantize", lab.folder, **settings)
        gptq = lab.loss(model)
        kind = "symmetric" if symmetric else "with a zero point"
        found += [
            Finding(f"nearest, {kind}", f"loss {nearest:.3f}"),
            Finding(f"GPTQ, {kind}", f"loss {gptq:.3f}; {_size(metrics)}", lab.original_loss < gptq < nearest),
        ]
    return found


@effect("qat_against_ptq")
def qat_against_ptq(lab: Lab) -> list[Finding]:
    """The same 40 steps on the same rows: rounded while training, or trained first and rounded afterwards."""
    aware, metrics = _run(lab, "qat", lab.folder, "bfloat16", scheme="int4_weight_only", **STEPS)
    qat = lab.loss(aware)
    known = find_method("sft")
    inputs = Inputs({"policy": lab.folder}, lambda _role, path: load_model(path), lab.calibration)
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(seed=lab.seed, scratch=Path(scratch), precision="bfloat16", log=lambda *_: None)
        trained = known().run(inputs, known.params(**STEPS), context)
        save_model(trained.model, trained.tokenizer, Path(scratch) / "sft")
        plain = lab.loss(trained.model)
        after = {
            scheme: lab.loss(_run(lab, "quantize", Path(scratch) / "sft", scheme=scheme, calibration_rows=64)[0])
            for scheme in ("int4_weight_only", "gptq_w4")
        }
    return [
        Finding("as it came", f"loss {lab.original_loss:.3f}"),
        Finding("SFT, not quantised", f"loss {plain:.3f}", plain < lab.original_loss),
        Finding("SFT, then nearest", f"loss {after['int4_weight_only']:.3f}"),
        Finding("SFT, then GPTQ", f"loss {after['gptq_w4']:.3f}", after["gptq_w4"] < after["int4_weight_only"]),
        Finding("QAT", f"loss {qat:.3f}; {_size(metrics)}", plain < qat < after["int4_weight_only"]),
    ]


if __name__ == "__main__":
    sys.exit(compression_effects.main())
