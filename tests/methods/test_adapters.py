"""Adapters that stay beside the weights: what the artifact holds, that it answers as the merged one, its cost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.data import DataSource
from harness.execute._spec import StageSpec
from harness.execute._stage import run_stage
from harness.folders import Folders
from harness.measure._weights import resident_bytes, stored_bytes
from harness.method import find_method
from harness.models import load_model
from harness.suite import load_suite
from harness.targets import Target

SETTINGS: dict[str, Any] = {
    "steps": 3,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "lora_rank": 4,
    "dataset": "instructions",
}


def _stage(results: Path, model: Path, method: str, **settings: Any) -> Path:
    params = find_method(method).params.model_validate(settings).model_dump(mode="json")
    spec = StageSpec(
        key=f"{method}{settings.get('lora_merge', True)}",
        method=method,
        version=find_method(method).version,
        params=params,
        inputs={"policy": f"model:{model}"},
        dataset="instructions",
        data="bundled",
        seed=0,
        precision="float32",
    )
    run_stage(spec, results, lambda step, total, metrics: None)
    return Folders(results).artifacts / spec.key


@pytest.fixture(scope="module", params=["lora", "dora", "pissa", "ia3"])
def both(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same training, merged and unmerged."""
    results = tmp_path_factory.mktemp("results")
    settings = {**SETTINGS, "adapter": request.param}
    if request.param == "ia3":
        settings |= {"lora_rank": 0, "learning_rate": 0.3}
    merged = _stage(results, tiny_model, "sft", **settings)
    return merged, _stage(results, tiny_model, "sft", lora_merge=False, **settings)


def _logits(folder: Path, dtype: str = "float32") -> torch.Tensor:
    loaded = load_model(folder, dtype=dtype)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found: torch.Tensor = loaded.model(input_ids=ids).logits
    return found


def test_unmerged_adapters_answer_as_merged_ones(both: tuple[Path, Path], tiny_model: Path) -> None:
    merged, unmerged = both
    torch.testing.assert_close(_logits(unmerged), _logits(merged), atol=1e-4, rtol=1e-4)
    assert (_logits(unmerged) - _logits(tiny_model)).abs().max() > 1e-2


def test_the_artifact_is_the_untrained_weights_and_the_adapter(both: tuple[Path, Path], tiny_model: Path) -> None:
    merged, unmerged = both
    base, beside = load_model(tiny_model).model, load_model(unmerged).model
    assert type(beside) is type(base)
    adapters = sum(p.numel() for n, p in beside.named_parameters() if "lora_" in n or "ia3_" in n)
    assert adapters > 0
    assert resident_bytes(beside) == resident_bytes(base) + 4 * adapters
    target = Target(name="t")
    extra = stored_bytes(unmerged, target) - stored_bytes(merged, target)
    assert 4 * adapters <= extra < 4 * adapters + 20_000
    kept = {name.replace(".base_layer", ""): weight for name, weight in beside.state_dict().items()}
    # PiSSA takes its first adapter out of the weights, and puts it back.
    assert all((kept[name] - weight).abs().max() < 1e-6 for name, weight in base.state_dict().items())
    assert json.loads((unmerged / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert not list(unmerged.rglob("*.bin")) + list(unmerged.rglob("README.md"))


def test_adapters_take_the_type_of_the_weights(both: tuple[Path, Path]) -> None:
    loaded = load_model(both[1], dtype="bfloat16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_unmerged_adapters_are_scored_as_merged_ones(both: tuple[Path, Path]) -> None:
    from harness.measure.tasks import measure_tasks
    from harness.suite import Task

    rows = [
        measure_tasks(
            load_model(folder), DataSource("bundled"), {"hellaswag": Task(limit=12)}, ("final",), "prefix-tree"
        )
        for folder in both
    ]
    merged, unmerged = ([(r["document"], r["metric"], r["score"]) for r in found["hellaswag"]] for found in rows)
    assert merged == unmerged


def test_an_adapter_in_another_format_is_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    from harness.errors import UserError

    broken = tmp_path / "broken"
    shutil.copytree(both[1], broken)
    (broken / "adapter" / "adapter_model.safetensors").rename(broken / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        load_model(broken)


@pytest.mark.parametrize("method", ["sft", "dpo", "distill", "ppo"])
def test_what_is_merged_keeps_its_key_and_unmerged_needs_a_rank(method: str) -> None:
    """The default stands in no stored settings: what was trained before there was a choice is found again."""
    params = find_method(method).params
    assert "lora_merge" not in params().model_dump(mode="json")
    assert params(lora_rank=4, lora_merge=False).model_dump(mode="json")["lora_merge"] is False  # type: ignore[call-arg]  # of a method that has it
    with pytest.raises(ValidationError, match="set lora_rank"):
        params(lora_merge=False)  # type: ignore[call-arg]  # the same


def test_no_step_may_follow_unmerged_adapters(tmp_path: Path) -> None:
    from harness.errors import UserError

    path = tmp_path / "s.yaml"
    text = (
        "name: t\nmodels: [m]\nrecipes:\n  a: [sft: {lora_rank: 4, lora_merge: MERGE}, dpo: {}]\n"
        "measure: {profile: {}}\nbudget: {trials_per_cell: 1}\n"
    )
    path.write_text(text.replace("MERGE", "true"))
    load_suite(path)
    path.write_text(text.replace("MERGE", "false"))
    with pytest.raises(UserError, match="no step may follow sft"):
        load_suite(path)
