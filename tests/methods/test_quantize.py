"""Quantisation: how small it is, how near, that it comes back as it was, and what it refuses."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("torchao")
pytest.importorskip("llmcompressor")

from harness._packed import PackedLinear
from harness._resident import resident_bytes
from harness.errors import InfeasibleError, UserError
from harness.method import Trained
from harness.models import load_model, save_model
from methods._quant_format import Matrix
from methods._quant_verify import log_probs
from methods.quantize import Quantize, QuantizeParams
from tests.methods.helpers import Log, held_out_loss, instructions, make_context, make_inputs, turn

Made = Callable[..., tuple[Path, Trained]]

MATRICES = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)] * 2
"""Rows and columns of the tiny model's linear layers."""

WEIGHTS = sum(rows * columns for rows, columns in MATRICES)


@pytest.fixture(scope="module")
def trained_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after 60 steps of SFT: on random weights no scheme is better than another."""
    from methods.sft import SFT, SFTParams

    folder = tmp_path_factory.mktemp("trained")
    params = SFTParams(steps=60, batch_size=8, learning_rate=5e-3)
    trained = SFT().run(make_inputs(tiny_model, instructions(200, 1)), params, make_context(folder, Log()))
    save_model(trained.model, trained.tokenizer, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def made(trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made(scheme, **settings)`: the artifact's folder and what the method returned, made once."""
    done: dict[str, tuple[Path, Trained]] = {}

    def make(scheme: str, **settings: Any) -> tuple[Path, Trained]:
        key = json.dumps([scheme, settings], sort_keys=True)
        if key not in done:
            folder = tmp_path_factory.mktemp("quantised")
            trained = run(trained_model, folder / "scratch", scheme=scheme, **settings)
            (folder / "artifact").mkdir()
            assert trained.write is not None
            trained.write(folder / "artifact")
            done[key] = folder / "artifact", trained
        return done[key]

    return make


def run(folder: Path, scratch: Path, *, dataset: Any = None, **params: Any) -> Trained:
    rows = instructions(200, 1) if dataset is None else dataset
    settings = QuantizeParams(**{"calibration_rows": 64, **params})
    return Quantize().run(make_inputs(folder, rows), settings, make_context(scratch, Log()))


def layers(model: Any) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | PackedLinear) and n != "lm_head"}


def dense(model: Any) -> dict[str, torch.Tensor]:
    found = layers(model)
    return {n: m.dense() if isinstance(m, PackedLinear) else m.weight.detach() for n, m in found.items()}


def spread(one: Any, other: Any) -> float:
    return float((log_probs(one) - log_probs(other)).abs().mean())


EVERY: list[tuple[str, dict[str, Any], float]] = [
    # bits of a weight, with the fp32 scales and the zero points
    ("int8_weight_only", {}, 8 * WEIGHTS + 32 * sum(n for n, _ in MATRICES)),
    ("int8_weight_only", {"granularity": "group", "group_size": 32}, 9 * WEIGHTS),
    ("int8_dynamic", {}, 8 * WEIGHTS + 32 * sum(n for n, _ in MATRICES)),
    ("int4_weight_only", {}, 4.5 * WEIGHTS),
    ("int4_weight_only", {"group_size": 32}, 5 * WEIGHTS),
    ("int4_weight_only", {"symmetric": False}, (4.5 + 4 / 64) * WEIGHTS),
    ("int4_weight_only", {"granularity": "channel"}, 4 * WEIGHTS + 32 * sum(n for n, _ in MATRICES)),
    ("int4_dynamic", {}, 4.5 * WEIGHTS),
    ("gptq_w4", {}, 4.5 * WEIGHTS),
    ("gptq_w4", {"symmetric": False}, (4.5 + 4 / 64) * WEIGHTS),
    ("smoothquant_w8a8", {}, 8 * WEIGHTS + 32 * sum(n for n, _ in MATRICES)),
]


@pytest.mark.parametrize(("scheme", "settings", "bits"), EVERY, ids=lambda v: str(v) if isinstance(v, str) else "")
def test_is_as_small_as_the_scheme_says_and_comes_back_as_it_was(
    made: Made, trained_model: Path, scheme: str, settings: dict[str, Any], bits: float
) -> None:
    folder, trained = made(scheme, **settings)
    base = load_model(trained_model).model
    rest = resident_bytes(base) - 4 * WEIGHTS
    again = load_model(folder)
    assert torch.equal(log_probs(again.model), log_probs(trained.model))
    # In memory a zero point is a byte, and layers that multiply integers know the sums of their rows.
    extra = {"int8_dynamic": 4 * sum(n for n, _ in MATRICES)}.get(scheme, 0)
    extra += 0 if settings.get("symmetric", True) else WEIGHTS // 128
    in_memory = resident_bytes(again.model)
    assert in_memory == rest + bits // 8 + extra
    assert trained.metrics["resident_bytes"] == trained.metrics["expected_resident_bytes"] == in_memory
    # It stays so when it has run: nothing is made dense for good.
    assert resident_bytes(again.model) == in_memory
    files = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert rest - 64 + bits // 8 <= files <= rest + bits // 8 + 12_000
    assert trained.metrics["weight_bytes"] == files
    assert trained.metrics["bits_per_weight"] == pytest.approx(bits / WEIGHTS, abs=0.05)
    assert trained.metrics["quantised_matrices"] == len(MATRICES)
    assert trained.metrics["resident_bytes_before"] == resident_bytes(base)
    assert not [p.name for p in folder.iterdir() if p.suffix not in {".json", ".safetensors", ".jinja"}]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("scheme", "group"), [("int8_weight_only", 64), ("int4_weight_only", 32)])
def test_a_weight_moves_by_at_most_half_a_step(
    made: Made, trained_model: Path, scheme: str, group: int, symmetric: bool
) -> None:
    folder, _ = made(scheme, granularity="group", group_size=group, symmetric=symmetric)
    before = dense(load_model(trained_model).model)
    levels = 2 ** int(scheme[3])
    for name, after in dense(load_model(folder).model).items():
        old, new = (w.unflatten(1, (-1, group)) for w in (before[name], after))
        if symmetric:
            step = old.abs().amax(-1, keepdim=True) / ((levels - 1) / 2)
            # The largest value is half a step beyond the last point on one side.
            assert ((new - old).abs() <= 0.5001 * step).all(), name
        else:
            step = (old.amax(-1, keepdim=True).clamp_min(0) - old.amin(-1, keepdim=True).clamp_max(0)) / (levels - 1)
            # The zero point is rounded as well, which can move the end of the grid by half a step.
            assert ((new - old).abs() <= 1.001 * step).all(), name
            assert float(((new - old).abs() / step).mean()) < 0.3
        assert len(torch.unique(torch.round(new / step * 4))) > 4
        assert not torch.equal(old, new)


def error(made: Made, trained_model: Path, scheme: str, **settings: Any) -> float:
    """Squared error of the weights, relative to their squares."""
    before = dense(load_model(trained_model).model)
    after = dense(load_model(made(scheme, **settings)[0]).model)
    return sum(float((after[n] - before[n]).square().sum()) for n in before) / sum(
        float(w.square().sum()) for w in before.values()
    )


def test_fewer_bits_and_coarser_scales_are_farther(made: Made, trained_model: Path) -> None:
    base = load_model(trained_model).model
    far = {s: spread(made(s)[1].model, base) for s in ("int8_weight_only", "int8_dynamic", "int4_weight_only")}
    assert 0 < far["int8_weight_only"] < far["int8_dynamic"] < 0.02
    assert 5 * far["int8_weight_only"] < far["int4_weight_only"]
    assert made("int4_weight_only")[1].metrics["logprob_change"] == pytest.approx(far["int4_weight_only"], rel=1e-4)
    wrong = [
        error(made, trained_model, scheme, **settings)
        for scheme, settings in (
            ("int8_weight_only", {}),
            ("int4_weight_only", {"group_size": 16}),
            ("int4_weight_only", {"group_size": 64}),
            ("int4_weight_only", {"granularity": "channel"}),
        )
    ]
    assert wrong == sorted(wrong)
    assert wrong[1] > 50 * wrong[0]


def test_a_zero_point_brings_weights_nearer(made: Made, trained_model: Path) -> None:
    with_zero = error(made, trained_model, "int4_weight_only", symmetric=False)
    assert with_zero < 0.9 * error(made, trained_model, "int4_weight_only")


def test_gptq_is_nearer_than_rounding_to_nearest(made: Made, trained_model: Path) -> None:
    loaded = load_model(trained_model)
    losses = {
        name: held_out_loss(loaded, made(name)[1].model, instructions(40, 2))
        for name in ("gptq_w4", "int4_weight_only")
    }
    base = held_out_loss(loaded, loaded.model, instructions(40, 2))
    assert abs(losses["gptq_w4"] - base) < 0.6 * abs(losses["int4_weight_only"] - base)
    # Not because it has more to choose from.
    assert made("gptq_w4")[1].metrics["weight_bytes"] == made("int4_weight_only")[1].metrics["weight_bytes"]


def test_smoothquant_moves_outliers_into_the_weights(trained_model: Path, tmp_path: Path) -> None:
    loaded = load_model(trained_model)
    # Two channels of the norms' outputs a hundred times the rest, as large models have them; the layers behind undo it.
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            for norm, readers in (
                (layer.input_layernorm, [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                (layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]),
            ):
                norm.weight[3:5] *= 100
                for reader in readers:
                    reader.weight[:, 3:5] /= 100
    save_model(loaded.model, loaded.tokenizer, tmp_path / "outliers")
    far = {}
    for name, settings in (
        ("plain", {"scheme": "int8_dynamic"}),
        ("smooth", {"scheme": "smoothquant_w8a8"}),
    ):
        far[name] = spread(run(tmp_path / "outliers", tmp_path / name, **settings).model, loaded.model)
    assert far["smooth"] < 0.2 * far["plain"]


@pytest.mark.parametrize("scheme", ["int8_weight_only", "int8_dynamic", "int4_weight_only", "gptq_w4"])
def test_transformers_alone_reads_the_folder_the_same(made: Made, scheme: str) -> None:
    from transformers import AutoModelForCausalLM

    settings = {"symmetric": False} if scheme == "int4_weight_only" else {}
    folder, trained = made(scheme, **settings)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert spread(plain, trained.model) < 1e-3
    # What the layers here are for.
    assert resident_bytes(plain) > 1.5 * resident_bytes(trained.model)


@pytest.mark.parametrize("scheme", ["int8_weight_only", "int8_dynamic", "int4_weight_only", "int4_dynamic"])
def test_runs_in_bfloat16(made: Made, scheme: str) -> None:
    folder, trained = made(scheme)
    model = load_model(folder, dtype="bfloat16").model
    found = log_probs(model)
    # As far as rounding to 16 bits takes it.
    assert float((found - log_probs(trained.model)).abs().mean()) < 0.03
    assert resident_bytes(model) < 0.65 * trained.metrics["resident_bytes"] + 0.5 * trained.metrics[
        "bits_per_weight"
    ] * (WEIGHTS / 8)
    one = torch.tensor([[7]])
    with torch.no_grad():
        assert model(input_ids=one).logits.dtype == torch.bfloat16
        single, several = model(input_ids=one).logits[0, 0], model(input_ids=one.expand(16, 1)).logits[9, 0]
    assert float((single.float() - several.float()).abs().max()) < 0.1


@pytest.mark.parametrize("scheme", ["int8_weight_only", "int8_dynamic", "int4_weight_only", "smoothquant_w8a8"])
def test_is_scored_as_lm_eval_scores_it(made: Made, scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from harness.measure.scoring import PrefixTreeLM

    folder, _ = made(scheme)
    loaded = load_model(folder)
    texts = [(f"say {word} {n}", f" {word} {word}") for n in range(4) for word in ("apple", "river", "stone")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]
    settings = {"pretrained": loaded.model, "tokenizer": loaded.tokenizer}
    ours = PrefixTreeLM(**settings)
    found = ours.loglikelihood(requests)
    wanted = HFLM(**settings, logits_cache=False, batch_size=1).loglikelihood(requests)
    limit = 1e-3 if ours.engine.fallback or scheme.endswith("only") else 0.05
    for (value, greedy), (right, also) in zip(found, wanted, strict=True):
        assert value == pytest.approx(right, abs=limit)
        assert greedy == also
    # Weights alone: shared tokens are computed once, as for any model.
    assert scheme not in {"int8_weight_only", "int4_weight_only"} or ours.engine.fallback is None
    if ours.engine.fallback:
        assert "plain batches" in caplog.text


def test_writes_as_transformers_writes_with_it(made: Made) -> None:
    from harness.measure.scoring import Engine

    loaded = load_model(made("int4_weight_only")[0])
    contexts = [[1, 5, 9, 30], [1, 5, 9, 31, 8]]
    found = Engine(loaded.model).generate(contexts, 12)
    for context, generated in zip(contexts, found, strict=True):
        ids = torch.tensor([context])
        whole = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=-1
        )
        assert whole[0, len(context) :].tolist() == generated.tokens


def test_a_scorer_that_falls_back_says_why(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measure.scoring import Engine

    # Each call rounds a bit differently, as sums in another order do to a large model.
    def noisy(self: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self._rounded(x + 0.01 * torch.randn_like(x)), self.dense(), self.bias)

    dynamic = load_model(made("int8_dynamic")[0]).model
    monkeypatch.setattr(PackedLinear, "forward", noisy)
    torch.manual_seed(0)
    assert "it rounds its activations" in (Engine(dynamic).fallback or "")


def test_its_gold_reward_is_measured(made: Made, trained_model: Path) -> None:
    from types import SimpleNamespace

    from harness.measure.gold import measure_gold

    prompts = [
        {"prompt": [turn("user", f"say apple {n}")], "constraints": '[{"kind": "max_words", "value": 3}]'}
        for n in range(6)
    ]
    settings: Any = SimpleNamespace(limit=None, max_new_tokens=8, temperature=1.0, batch_size=3, seed=0)
    base = load_model(trained_model)
    kl = {}
    for scheme in ("int8_weight_only", "int4_weight_only"):
        loaded = load_model(made(scheme, **({"granularity": "channel"} if scheme[3] == "4" else {}))[0])
        rows = measure_gold(loaded, prompts, None, base, settings, ["tune", "final"])
        values = [float(str(r["score"])) for r in rows if r["metric"] == "kl"]
        assert len(values) == len(prompts)
        kl[scheme] = sum(abs(v) for v in values)
    # How far the policy went from the base it was made of.
    assert 0 < kl["int8_weight_only"] < kl["int4_weight_only"]


def test_a_profile_sees_the_packed_weights(made: Made) -> None:
    from harness.measure.profile import measure_profile
    from harness.targets import Target

    settings = {"prompt_tokens": 8, "new_tokens": 4, "repeats": 2, "warmup": 1, "batch_sizes": [1]}
    folder, trained = made("int4_weight_only")
    rows = measure_profile(folder, Target(name="cpu"), settings, 300)
    found = {str(r["metric"]): float(str(r["value"])) * 2**20 for r in rows}
    assert found["weight_mb"] == pytest.approx(trained.metrics["resident_bytes"])
    assert found["weight_disk_mb"] == pytest.approx(trained.metrics["weight_bytes"])


@pytest.mark.parametrize("scheme", ["int8_weight_only", "smoothquant_w8a8"])
def test_leaves_no_hooks(trained_model: Path, tmp_path: Path, scheme: str) -> None:
    import tqdm

    inputs = make_inputs(trained_model, instructions(50, 1))
    bar = tqdm.tqdm.__init__
    trained = Quantize().run(inputs, QuantizeParams(scheme=scheme), make_context(tmp_path, Log()))
    assert tqdm.tqdm.__init__ is bar
    for model in (trained.model, inputs.load("policy").model):
        assert not [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        assert "save_pretrained" not in vars(model)


def test_says_nothing_and_leaves_no_files(trained_model: Path, tmp_path: Path) -> None:
    # A fresh process: libraries speak when they are imported.
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path\n"
        "from tests.methods.helpers import Log, instructions, make_context, make_inputs\n"
        "from methods.quantize import Quantize, QuantizeParams\n"
        "inputs = make_inputs(Path(sys.argv[1]), instructions(20, 1))\n"
        "Quantize().run(inputs, QuantizeParams(scheme='gptq_w4'), make_context(Path(sys.argv[2]), Log()))\n"
    )
    (tmp_path / "here").mkdir()
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(trained_model), str(tmp_path / "scratch")],
        check=True,
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == done.stderr == ""
    assert not list((tmp_path / "here").iterdir())


def test_same_seed_gives_the_same_weights(trained_model: Path, tmp_path: Path) -> None:
    first, again = (dense(run(trained_model, tmp_path / n, scheme="gptq_w4").model) for n in "ab")
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_refuses_group_sizes_that_do_not_divide(trained_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"group_size=48 does not divide .*q_proj \(64 columns, 2 layers\).*divisor of 64"
    ):
        run(trained_model, tmp_path, scheme="int4_weight_only", group_size=48)
    with pytest.raises(UserError, match=r"down_proj \(128 columns") as error:
        run(trained_model, tmp_path, scheme="int4_weight_only", group_size=65)
    assert "16, 32, 64" in str(error.value)
    with pytest.raises(UserError) as error:
        run(trained_model, tmp_path, scheme="gptq_w4", group_size=128)
    assert "down_proj" not in str(error.value)
    # Rows do not care.
    run(trained_model, tmp_path, scheme="int8_weight_only", group_size=48)


def test_refuses_forms_that_a_scheme_does_not_have(trained_model: Path, tmp_path: Path) -> None:
    for settings in ({"granularity": "group"}, {"symmetric": False}):
        with pytest.raises(UserError, match="one symmetric scale a row"):
            run(trained_model, tmp_path, scheme="smoothquant_w8a8", **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_refuses_fp8_on_a_cpu(trained_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs a GPU with fp8 units .*8\.9.*int8_dynamic"):
        run(trained_model, tmp_path, scheme="fp8")


def test_fp8_is_a_byte_a_weight(trained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import methods.quantize

    monkeypatch.setattr(methods.quantize, "_need_fp8", lambda: None)
    trained = run(trained_model, tmp_path, scheme="fp8")
    before = dense(load_model(trained_model).model)
    for name, after in dense(trained.model).items():
        # Three bits behind the leading one.
        assert (after - before[name]).abs().max() <= before[name].abs().max() / 16
        assert not torch.equal(after, before[name])
    assert trained.metrics["bits_per_weight"] == pytest.approx(8 + 32 * sum(n for n, _ in MATRICES) / WEIGHTS)
    assert 0 < trained.metrics["logprob_change"] < 0.2


def test_calibrated_schemes_need_usable_rows(trained_model: Path, tmp_path: Path) -> None:
    import datasets

    context = make_context(tmp_path, Log())
    with pytest.raises(UserError, match="dataset"):
        Quantize().run(make_inputs(trained_model, None), QuantizeParams(scheme="gptq_w4"), context)
    # The others look at no data.
    Quantize().run(make_inputs(trained_model, None), QuantizeParams(dataset=None), context)
    long = datasets.Dataset.from_list(
        [{"prompt": [turn("user", "word " * 400)], "completion": [turn("assistant", "no")]}]
    )
    with pytest.raises(UserError, match="max_length=512"):
        run(trained_model, tmp_path, scheme="smoothquant_w8a8", dataset=long)


def test_calibration_rows_decide_what_gptq_leaves(made: Made, trained_model: Path, tmp_path: Path) -> None:
    few = run(trained_model, tmp_path, scheme="gptq_w4", calibration_rows=2)
    assert few.metrics["calibration_rows"] == 2
    assert few.metrics["calibration_tokens"] < made("gptq_w4")[1].metrics["calibration_tokens"] / 20
    assert spread(few.model, made("gptq_w4")[1].model) > 1e-3


def test_is_the_last_step(made: Made, tmp_path: Path) -> None:
    assert Quantize.deploys({})
    assert Quantize.runs_on({}) == {"eager", "inductor"}
    with pytest.raises(UserError, match="is a PackedLinear, not an ordinary linear layer"):
        run(made("int8_weight_only")[0], tmp_path, scheme="int4_weight_only")


def test_the_head(trained_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quantize_head: the output head of this model is its input embedding"):
        run(trained_model, tmp_path, quantize_head=True)
    loaded = load_model(trained_model)
    loaded.model.config.tie_word_embeddings = False
    loaded.model.lm_head.weight = nn.Parameter(loaded.model.lm_head.weight.detach().clone())
    save_model(loaded.model, loaded.tokenizer, tmp_path / "untied")
    without = run(tmp_path / "untied", tmp_path / "a")
    head = run(tmp_path / "untied", tmp_path / "b", quantize_head=True)
    assert isinstance(without.model.lm_head, nn.Linear)
    assert isinstance(head.model.lm_head, PackedLinear)
    size = loaded.model.lm_head.weight.numel()
    saved = without.metrics["resident_bytes"] - head.metrics["resident_bytes"]
    assert saved == 3 * size - 4 * len(loaded.model.lm_head.weight)
    assert head.metrics["quantised_matrices"] == len(MATRICES) + 1


def test_says_which_package_is_missing(trained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec

    def without(missing: str) -> Any:
        return lambda name, *rest: None if name == missing else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without("torchao"))
    with pytest.raises(UserError, match=r"needs torchao: .*pip install 'posttrain-harness\[compression\]'"):
        run(trained_model, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", without("llmcompressor"))
    run(trained_model, tmp_path)
    with pytest.raises(UserError, match=r"needs llmcompressor: .*\[compression\]"):
        run(trained_model, tmp_path, scheme="gptq_w4")


def test_notices_what_was_not_saved_right(trained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import methods._quant_verify as verify

    real = verify.save_quantised

    def doubled(model: Any, tokenizer: Any, matrices: Any, *rest: Any) -> None:
        real(model, tokenizer, {n: Matrix(m.values, 2 * m.scale, m.zero) for n, m in matrices.items()}, *rest)

    def unpacked(model: Any, tokenizer: Any, matrices: Any, grid: Any, folder: Path) -> None:
        save_model(load_model(trained_model).model, tokenizer, folder)

    def fat(model: Any, tokenizer: Any, matrices: Any, grid: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        real(model, tokenizer, matrices, grid, folder)
        save_file({"more": torch.zeros(20_000)}, folder / "more.safetensors")

    for wrong, reason in (
        (doubled, "differs from the layer"),
        (unpacked, "0 matrices"),
        (fat, "bytes on disk"),
    ):
        monkeypatch.setattr(verify, "save_quantised", wrong)
        with pytest.raises(RuntimeError, match=reason):
            run(trained_model, tmp_path / reason)


def test_a_model_that_is_not_finite_is_infeasible(trained_model: Path, tmp_path: Path) -> None:
    loaded = load_model(trained_model)
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight[0, 0] = math.inf
    inputs = make_inputs(trained_model, None)
    inputs._loaded["policy"] = loaded
    with pytest.raises(InfeasibleError, match="up_proj are not finite"):
        Quantize().run(inputs, QuantizeParams(), make_context(tmp_path, Log()))


def test_kinds_of_quantisation_that_cannot_run_packed_are_refused(made: Made, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made("int4_weight_only")[0], tmp_path / "other")
    file = tmp_path / "other" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 2
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="expected 4 or 8 bits"):
        load_model(tmp_path / "other")
