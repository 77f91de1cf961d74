"""Does each compression method do what it claims, on a real model? Figures of the bundled one; exit 1 if a claim fails.

    python benchmarks/compression_effects.py                    # everything: half an hour on two busy cores
    python benchmarks/compression_effects.py --only heads distill

Losses are nats per token of the completions of held-out instructions, none of them a calibration or training row. One
torch thread, float32; training in bfloat16 autocast. Times are of two models taken in turn within one run, so that what
else the machine does falls on both; only their ratio is of interest.

An effect is a function from `Lab` to its findings, under its name in `EFFECTS`: add one by writing it with `@effect`.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness.data import DataSource, load_training_set
from harness.method import Context, Inputs, LoadedModel, find_method
from harness.models import load_model, resolve_model
from methods import prune_heads, prune_layers, prune_mlp
from methods._pruning import count_parameters
from methods._rows import instruction_rows

TRAINING = ("distill", "qat", "sft")
"""Methods that run in bfloat16 autocast; the others in float32."""

HELD_OUT = 64
"""Rows at the end of the bundled instructions that nothing is calibrated or trained on."""


UNCLAIMED = ("weight",)
"""Importances that the table shows and claims nothing of: by norms alone, heads that this model can least do without
rank below others."""


@dataclass(frozen=True)
class Finding:
    """One line of the table; `holds` says whether a claim it makes is true, None where it makes none."""

    what: str
    value: str
    holds: bool | None = None


class Lab:
    """The model as it came, the rows to calibrate on, and the held-out rows."""

    def __init__(self, model: str, seed: int) -> None:
        self.folder, self.seed = resolve_model(model), seed
        rows, _ = load_training_set("instructions", "instructions", DataSource("bundled"))
        self.calibration = rows.select(range(len(rows) - HELD_OUT))
        self.original = load_model(self.folder)
        held_out = rows.select(range(len(rows) - HELD_OUT, len(rows)))
        prompts = {str(row["prompt"]) for row in self.calibration}
        assert not any(str(row["prompt"]) in prompts for row in held_out)
        tokens = instruction_rows(held_out, self.original.tokenizer, 512)
        self.held_out = sorted(tokens, key=lambda row: len(row["input_ids"]))

    def run(self, method: str, policy: LoadedModel | None = None, **settings: object) -> tuple[Any, Any]:
        """What a method makes of the original, or of another policy (which it may change): model and metrics."""
        known = find_method(method)
        given = {"policy": policy or load_model(self.folder), "teacher": self.original}
        inputs = Inputs(
            # Only distillation looks at the folders, and refuses two that are the same.
            folders={"policy": Path("policy"), "teacher": self.folder},
            loader=lambda role, _path: given[role],
            dataset=self.calibration,
        )
        with tempfile.TemporaryDirectory() as scratch:
            precision = "bfloat16" if method in TRAINING else "float32"
            context = Context(seed=self.seed, scratch=Path(scratch), precision=precision, log=lambda *_: None)
            trained = known().run(inputs, known.params(**settings), context)
        return trained.model, trained.metrics

    @torch.no_grad()
    def logits(self, model: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For some held-out rows at a time the logits at their completions (tokens × vocabulary) and the token ids."""
        for start in range(0, len(self.held_out), 16):
            rows = self.held_out[start : start + 16]
            longest = max(len(row["input_ids"]) for row in rows)
            # Padded on the right, where a causal pass needs no mask.
            ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
            labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows])[:, 1:]
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][labels != -100]
            yield model.get_output_embeddings()(hidden).float(), labels[labels != -100]

    def loss(self, model: Any) -> float:
        """Nats per completion token."""
        total, count = 0.0, 0
        for logits, targets in self.logits(model):
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
        return total / count

    @cached_property
    def original_loss(self) -> float:
        """The model's as it came."""
        return self.loss(self.original.model)

    def divergence(self, model: Any) -> float:
        """KL(original || model), nats per completion token."""
        total, count = 0.0, 0
        for (mine, targets), (theirs, _) in zip(self.logits(model), self.logits(self.original.model), strict=True):
            p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
            count += len(targets)
        return total / count

    def policy(self, model: Any) -> LoadedModel:
        """A model as what a step starts from."""
        return LoadedModel(model=model, tokenizer=self.original.tokenizer, folder=Path("policy"))


Effect = Callable[[Lab], list[Finding]]
EFFECTS: dict[str, Effect] = {}


def effect(name: str) -> Callable[[Effect], Effect]:
    """Register an effect."""

    def register(function: Effect) -> Effect:
        EFFECTS[name] = function
        return function

    return register


def _loss(what: str, value: float, holds: bool | None = None) -> Finding:
    return Finding(what, f"loss {value:.3f} (perplexity {2.718281828**value:.2f})", holds)


def _reversed(module: Any, name: str, run: Callable[[], Any]) -> Any:
    """Run a pruning method with its importance turned round: what matters most leaves."""
    measure = getattr(module, name)

    def turned(*args: object, **kwargs: object) -> Any:
        found = measure(*args, **kwargs)
        return [-s for s in found] if isinstance(found, list) else -found

    setattr(module, name, turned)
    try:
        return run()
    finally:
        setattr(module, name, measure)


def _zeroed(model: Any, pruned: Any) -> tuple[Any, int]:
    """The model with zeros for the groups of heads that another lacks, and how many parameters those have."""
    model = copy.deepcopy(model)
    groups = model.config.num_key_value_heads
    parameters = 0
    with torch.no_grad():
        for layer, left in zip(model.model.layers, pruned.model.layers, strict=True):
            attention = layer.self_attn
            keys = attention.k_proj.weight.reshape(groups, attention.head_dim, -1)
            kept = left.self_attn.k_proj.weight.reshape(-1, attention.head_dim, keys.shape[-1])
            for group in range(groups):
                if any(torch.equal(keys[group], other) for other in kept):
                    continue
                for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                    weight = getattr(attention, name).weight
                    weight = weight.T if name == "o_proj" else weight
                    part = weight[group * (len(weight) // groups) : (group + 1) * (len(weight) // groups)]
                    parameters += part.numel()
                    part.zero_()
    return model, parameters


@effect("heads")
def heads(lab: Lab) -> list[Finding]:
    """A third of the heads: leaving them out is zeroing them, and the least important ones matter least."""
    pruned, metrics = lab.run("prune_heads", fraction=1 / 3)
    zeroed, parameters = _zeroed(lab.original.model, pruned)
    difference = max(
        float((a - b).abs().max()) for (a, _), (b, _) in zip(lab.logits(pruned), lab.logits(zeroed), strict=True)
    )
    size = max(float(a.abs().max()) for a, _ in lab.logits(zeroed))
    fewer = count_parameters(lab.original.model) - count_parameters(pruned)
    found = [
        _loss("as it came", lab.original_loss),
        Finding(
            "left out against zeroed", f"logits differ by {difference:.1e} of {size:.0f}", difference < 1e-3 * size
        ),
        Finding("parameters fewer", f"{fewer:.0f}, those of the heads {parameters}", fewer == parameters),
        Finding("heads left", f"{pruned.config.num_attention_heads} of 9, {metrics['heads_removed']:.0f} gone in all"),
    ]
    for importance in ("gradient", "activation", "weight"):
        settings: dict[str, object] = {"fraction": 1 / 3, "importance": importance}
        least = lab.loss(lab.run("prune_heads", **settings)[0])
        turned = _reversed(prune_heads, "_importance", lambda s=settings: lab.run("prune_heads", **s))
        found.append(_loss(f"least by {importance} gone", least))
        most = lab.loss(turned[0])
        claim = None if importance in UNCLAIMED else least < most
        found.append(_loss(f"most by {importance} gone", most, claim))
    return found


@effect("channels")
def channels(lab: Lab) -> list[Finding]:
    """A quarter of the feed-forward channels: the least important against the most."""
    found = [_loss("as it came", lab.original_loss)]
    for importance in ("gradient", "activation", "weight"):
        settings: dict[str, object] = {"fraction": 0.25, "importance": importance}
        least = lab.loss(lab.run("prune_mlp", **settings)[0])
        turned = _reversed(prune_mlp, "_importance", lambda s=settings: lab.run("prune_mlp", **s))
        most = lab.loss(turned[0])
        claim = None if importance in UNCLAIMED else least < most
        found += [_loss(f"least by {importance} gone", least), _loss(f"most by {importance} gone", most, claim)]
    return found


@effect("layers")
def layers(lab: Lab) -> list[Finding]:
    """A tenth of the layers: those that change the hidden states least against those that do most."""
    found = [_loss("as it came", lab.original_loss)]
    for importance in ("block_influence", "angular"):
        settings: dict[str, object] = {"fraction": 0.1, "importance": importance}
        least = lab.loss(lab.run("prune_layers", **settings)[0])
        turned = _reversed(prune_layers, "_similarity", lambda s=settings: lab.run("prune_layers", **s))
        most = lab.loss(turned[0])
        found += [_loss(f"least by {importance} gone", least), _loss(f"most by {importance} gone", most, least < most)]
    return found


def _ratios(one: Any, other: Any, rounds: int = 15, tokens: int = 256) -> list[float]:
    """Time of a prefill of the one as a part of the other's, round by round."""
    ids = torch.randint(100, 40_000, (1, tokens), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def seconds(model: Any) -> float:
        start = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    for model in (one, other):
        seconds(model)
    return [seconds(one) / seconds(other) for _ in range(rounds)]


@effect("speed")
def speed(lab: Lab) -> list[Finding]:
    """Prefill of 256 tokens, pruned against unpruned; zeros in dense matrices save nothing."""
    found = []
    for name, settings in (
        ("prune_heads", {"fraction": 1 / 3, "importance": "weight"}),
        ("prune_mlp", {"fraction": 0.25, "importance": "weight"}),
        ("prune_layers", {"fraction": 0.25, "calibration_rows": 4}),
        ("prune_weights", {"criterion": "magnitude"}),
    ):
        pruned, metrics = lab.run(name, **settings)
        low, middle, high = statistics.quantiles(_ratios(pruned, lab.original.model), n=4)
        smaller = metrics["parameters"] / count_parameters(lab.original.model)
        what = f"{name} {settings.get('fraction', 0.5):.2f}"
        value = f"time {middle:.3f} of unpruned (quartiles {low:.3f}-{high:.3f}), parameters {smaller:.3f}"
        found.append(Finding(what, value, middle < 1 if smaller < 1 else None))
    return found


@effect("weights")
def weights(lab: Lab) -> list[Finding]:
    """Half of the weights, anywhere or two of every four, by each criterion."""
    found = [_loss("as it came", lab.original_loss)]
    for pattern in ("unstructured", "2:4"):
        losses = {}
        for criterion in ("magnitude", "wanda", "sparsegpt"):
            start = time.perf_counter()
            model, metrics = lab.run("prune_weights", criterion=criterion, pattern=pattern)
            took = time.perf_counter() - start
            losses[criterion] = lab.loss(model)
            better = None if criterion == "magnitude" else losses[criterion] < losses["magnitude"]
            what = f"{pattern} by {criterion} ({took:.0f} s)"
            found.append(_loss(f"{what}, zeros {metrics['zero_fraction']:.4f}", losses[criterion], better))
    return found


@effect("distill")
def distill(lab: Lab) -> list[Finding]:
    """Thirty steps of distillation from the model as it came: the pruned one comes nearer to it, zeros stay."""
    found = []
    for name, settings in (
        ("prune_heads", {"fraction": 1 / 3}),
        ("prune_weights", {"criterion": "wanda", "pattern": "2:4"}),
    ):
        pruned, _ = lab.run(name, **settings)
        before = lab.divergence(pruned)
        zeros = [p.detach() == 0 for layer in pruned.model.layers for p in layer.parameters()]
        taught, _ = lab.run("distill", lab.policy(pruned), steps=30, batch_size=8, learning_rate=1e-4)
        after = lab.divergence(taught)
        found.append(Finding(name, f"KL to the teacher {before:.3f} before, {after:.3f} after", after < before))
        if name == "prune_weights":
            left = [p.detach() == 0 for layer in taught.model.layers for p in layer.parameters()]
            same = all(bool((b | ~a).all()) for a, b in zip(zeros, left, strict=True))
            found.append(Finding(name, f"zeros before {sum(int(z.sum()) for z in zeros)}, all of them after", same))
    return found


MB = 2**20
STEPS: dict[str, object] = {"steps": 40, "batch_size": 4, "learning_rate": 2e-5}


def _size(metrics: Any) -> str:
    disk, memory = metrics["weight_bytes"] / MB, metrics["resident_bytes"] / MB
    return f"{disk:.0f} MB on disk, {memory:.0f} in memory, {metrics['bits_per_weight']:.2f} bits a weight"


@effect("int8_bytes")
def int8_bytes(lab: Lab) -> list[Finding]:
    """8 bits a weight: a quarter of the matrices' bytes, next to the same loss; 4 bits: half of that, and a price."""
    found = [_loss("as it came", lab.original_loss)]
    matrices = 4 * sum(m.weight.numel() for n, m in lab.original.model.named_modules() if n.endswith("_proj"))
    for scheme, part, worse in (
        ("int8_weight_only", 0.25, 0.02),
        ("int8_dynamic", 0.25, 0.1),
        ("int4_weight_only", 0.125, None),
    ):
        model, metrics = lab.run("quantize", scheme=scheme)
        loss = lab.loss(model)
        # What the matrices no longer take, but for their scales.
        fewer = [metrics[f"{kind}_bytes_before"] - metrics[f"{kind}_bytes"] for kind in ("weight", "resident")]
        small = all(f > 0.97 * (1 - part) * matrices for f in fewer)
        found.append(Finding(scheme, _size(metrics), small))
        found.append(_loss(scheme, loss, None if worse is None else loss - lab.original_loss < worse))
    return found


@effect("gptq_beats_rtn")
def gptq_beats_rtn(lab: Lab) -> list[Finding]:
    """4 bits, groups of 64: GPTQ is nearer than rounding to nearest, with and without a zero point."""
    found = [_loss("as it came", lab.original_loss)]
    for symmetric in (True, False):
        kind = "symmetric" if symmetric else "with zero points"
        nearest = lab.loss(lab.run("quantize", scheme="int4_weight_only", symmetric=symmetric)[0])
        settings: dict[str, object] = {"scheme": "gptq_w4", "symmetric": symmetric, "calibration_rows": 64}
        model, metrics = lab.run("quantize", **settings)
        gptq = lab.loss(model)
        found.append(_loss(f"to nearest, {kind}", nearest))
        found.append(_loss(f"GPTQ, {kind}", gptq, gptq < nearest))
        found.append(Finding(f"GPTQ, {kind}", _size(metrics)))
    return found


@effect("qat_against_ptq")
def qat_against_ptq(lab: Lab) -> list[Finding]:
    """The same 40 steps on the same rows: rounded to 4 bits while training, or trained first and rounded afterwards."""
    aware, metrics = lab.run("qat", scheme="int4_weight_only", **STEPS)
    qat = lab.loss(aware)
    plain = lab.run("sft", **STEPS)[0]
    losses = {"sft": lab.loss(plain)}
    for scheme in ("int4_weight_only", "gptq_w4"):
        settings: dict[str, object] = {"scheme": scheme, "calibration_rows": 64}
        model, after = lab.run("quantize", lab.policy(copy.deepcopy(plain)), **settings)
        assert after["resident_bytes"] == metrics["resident_bytes"]
        losses[scheme] = lab.loss(model)
    return [
        _loss("as it came", lab.original_loss),
        _loss("sft, not quantised", losses["sft"]),
        _loss("sft, then to nearest", losses["int4_weight_only"]),
        _loss("sft, then GPTQ", losses["gptq_w4"]),
        _loss("qat", qat, losses["sft"] < qat < losses["int4_weight_only"]),
    ]


def main() -> None:
    """Measure, print the table, and say by the exit code whether every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seed", type=int, default=0, help="draws calibration and training rows")
    parser.add_argument("--only", nargs="+", choices=sorted(EFFECTS), metavar="NAME", help=", ".join(EFFECTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lab = Lab(options.model, options.seed)
    failed = 0
    for name in options.only or EFFECTS:
        start = time.perf_counter()
        findings = EFFECTS[name](lab)
        print(f"{name}: {(EFFECTS[name].__doc__ or '').strip()} ({time.perf_counter() - start:.0f} s)")
        for finding in findings:
            verdict = {True: "holds", False: "FAILS", None: ""}[finding.holds]
            print(f"  {finding.what:<52} {finding.value:<72} {verdict}", flush=True)
            failed += finding.holds is False
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
