"""Exported models in their runtimes: the tokens and scores of torch, through profiles, generation and benchmarks."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data import DataSource
from harness.errors import UserError
from harness.execute._measurement import _Work
from harness.execute._spec import MeasureSpec
from harness.measure._backends import make_prompt, open_session, request
from harness.measure.gold import measure_gold
from harness.measure.profile import measure_profile
from harness.measure.tasks import measure_tasks
from harness.method import LoadedModel
from harness.models import load_model
from harness.runtimes import load_runtime
from harness.runtimes._model import RuntimeModel
from harness.targets import Target
from tests.runtimes.exports import BACKENDS, export_of, needs

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class _Settings:
    num_fewshot: int | None = None
    limit: int | None = None
    max_gen_toks: int | None = None


@dataclass(frozen=True)
class _Gold:
    limit: int | None = 6
    max_new_tokens: int = 8
    temperature: float = 0.0
    batch_size: int = 2
    seed: int = 0


def _target(backend: str) -> Target:
    return Target.model_validate({"name": backend, "backend": backend})


@pytest.fixture(scope="module")
def ours(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(backend: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_of(tiny_model, tmp_path_factory, BACKENDS[backend]).folder


@pytest.fixture(scope="module")
def exported(backend: str, folder: Path) -> LoadedModel:
    return load_runtime(folder, _target(backend))


def _ids(loaded: LoadedModel, text: str) -> list[int]:
    return [int(i) for i in loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]


TEXTS = ["Ann has three apples and buys four more of them.", "The answer", "1 + 1 ="]


def _padded(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    batch = loaded.tokenizer(TEXTS, return_tensors="pt", padding=True, add_special_tokens=False)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_logits_of_a_left_padded_batch_are_those_of_each_text_alone(ours: LoadedModel, exported: LoadedModel) -> None:
    batch = _padded(exported)
    assert (batch["attention_mask"][1:, 0] == 0).all()
    logits = exported.model(**batch).logits
    for row, text in enumerate(TEXTS):
        ids = _ids(ours, text)
        with torch.no_grad():
            right = ours.model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits[row, -len(ids) :], right, atol=1e-4, rtol=0)


def test_only_the_logits_asked_for(exported: LoadedModel) -> None:
    ids = torch.tensor([_ids(exported, TEXTS[0])])
    whole = exported.model(ids).logits
    assert whole.shape[:2] == ids.shape
    torch.testing.assert_close(exported.model(ids, logits_to_keep=2).logits, whole[:, -2:], atol=1e-5, rtol=0)
    some = torch.tensor([1, 4])
    torch.testing.assert_close(exported.model(ids, logits_to_keep=some).logits, whole[:, some], atol=1e-5, rtol=0)


def test_a_cache_goes_on_where_it_was_left_however_often(exported: LoadedModel) -> None:
    ids = torch.tensor([_ids(exported, TEXTS[0])])
    whole = exported.model(ids).logits
    first = exported.model(ids[:, :4], use_cache=True).past_key_values
    for _ in range(2):
        rest = exported.model(ids[:, 4:], past_key_values=first)
        assert rest.past_key_values.get_seq_length() == ids.shape[1]
        torch.testing.assert_close(rest.logits, whole[:, 4:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="expected what a forward pass of this model returned"):
        exported.model(ids, past_key_values=object())


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_generate_writes_torchs_tokens(ours: LoadedModel, exported: LoadedModel, how: dict[str, Any]) -> None:
    written = []
    for loaded in (ours, exported):
        torch.manual_seed(0)
        found = loaded.model.generate(
            **_padded(loaded), max_new_tokens=12, min_new_tokens=12, **{"do_sample": False} | how
        )
        written.append(found.tolist())
    assert written[0] == written[1]


def test_a_session_writes_torchs_tokens(ours: LoadedModel, folder: Path, tiny_model: Path, backend: str) -> None:
    session = open_session(folder, _target(backend), 9, 6)
    torch_session = open_session(tiny_model, Target(name="torch"), 9, 6)
    assert list(session.ordinary_tokens()) == list(torch_session.ordinary_tokens())
    for batch in (1, 3):
        prompt = make_prompt(session.ordinary_tokens(), batch, 9)
        written = []
        for one in (session, torch_session):
            one.prepare()
            request(one, prompt, 2)
            tokens, row = one.begin(prompt), []
            for _ in range(6):
                tokens = one.step(tokens)
                row.append(tokens.tolist())
            written.append(row)
        assert written[0] == written[1]
    assert not session.device_peaks()


def test_a_profile_has_every_metric(folder: Path, backend: str) -> None:
    settings = {"prompt_tokens": 8, "new_tokens": 3, "batch_sizes": [1, 2], "repeats": 2, "warmup": 1}
    rows = measure_profile(folder, _target(backend), settings, 120)
    found = {(str(r["setting"]), str(r["metric"])): float(str(r["value"])) for r in rows}
    for batch in ("batch=1", "batch=2"):
        for metric in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "tokens_per_s", "prefill_tokens_per_s", "peak_rss_mb"):
            assert found[batch, metric] > 0
    assert found["load", "load_ms"] > 0
    files = [p for p in folder.iterdir() if p.name.startswith(("model.", "openvino_model."))]
    assert found["load", "weight_disk_mb"] == pytest.approx(sum(p.stat().st_size for p in files) / 2**20)
    # torch alone takes 200 MB.
    assert found["batch=2", "peak_rss_mb"] < 200


def test_benchmarks_score_as_in_torch_in_plain_batches_and_say_so(
    ours: LoadedModel, exported: LoadedModel, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    tasks = {"truthfulqa_mc1": _Settings(limit=6), "gsm8k": _Settings(limit=6, num_fewshot=0, max_gen_toks=6)}
    notes: list[str] = []
    halves = ("tune", "final")
    right = measure_tasks(ours, DataSource("bundled"), tasks, halves)
    found = measure_tasks(exported, DataSource("bundled"), tasks, halves, note=notes.append)
    assert notes == [f"{backend} runs it, outside torch"]
    assert found == right
    assert len(found["gsm8k"]) == 2 * 6
    assert measure_tasks(
        exported, DataSource("bundled"), {"truthfulqa_mc1": tasks["truthfulqa_mc1"]}, halves, "hf"
    ) == {"truthfulqa_mc1": right["truthfulqa_mc1"]}


def test_log_likelihoods_are_torchs(ours: LoadedModel, exported: LoadedModel) -> None:
    from harness.measure.scoring import Engine

    pairs = [(_ids(ours, t), n) for t in TEXTS for n in (1, 2)]
    for (a, greedy), (b, same) in zip(
        Engine(ours.model).score(pairs), Engine(exported.model).score(pairs), strict=True
    ):
        assert a == pytest.approx(b, abs=1e-3)
        assert greedy == same


def test_gold_reward_and_kl_of_an_export(ours: LoadedModel, exported: LoadedModel) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Name {n} things."}],
            "constraints": json.dumps([{"kind": "no_comma"}]),
        }
        for n in range(6)
    ]
    found = measure_gold(exported, rows, None, ours, _Gold(), ["tune", "final"])
    right = measure_gold(ours, rows, None, ours, _Gold(), ["tune", "final"])
    for one, other in zip(found, right, strict=True):
        assert one["response"] == other["response"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_a_worker_loads_the_model_in_its_runtime_and_what_stands_beside_it_in_torch(
    folder: Path, backend: str, tiny_model: Path, tmp_path: Path
) -> None:
    for key, source in (("exported", folder), ("plain", tiny_model)):
        shutil.copytree(source, tmp_path / "artifacts" / key)
        (tmp_path / "artifacts" / key / "stage.json").write_text("{}")
    target = _target(backend).model_dump()
    spec = MeasureSpec(
        key="k", model="exported", artifact="exported", target=target, data="bundled", halves=("tune",),
        scorer="prefix-tree", items=(), base="plain",
    )  # fmt: skip
    work = _Work(spec, tmp_path, lambda step, total, metrics: None)
    assert isinstance(work.load("exported").model, RuntimeModel)
    assert work.load("exported") is work.load("exported")
    assert type(work.load("plain").model).__name__ == "LlamaForCausalLM"
    assert work.load("plain", "reward").model.config.num_labels == 1
    plain = _Work(spec.model_copy(update={"model": "plain"}), tmp_path, lambda step, total, metrics: None)
    with pytest.raises(UserError, match="must end with an export"):
        plain.load("plain")


def test_a_broken_file_is_a_user_error(folder: Path, backend: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    for file in broken.iterdir():
        if file.name.startswith(("model.", "openvino_model.")):
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot load .*(model)"):
        open_session(broken, _target(backend), 2, 2)


def test_openvino_tells_its_maker_nothing() -> None:
    needs("openvino")
    code = (
        "import sys; from harness.runtimes import import_runtime; import_runtime('openvino');"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry.')], 'openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[] True"
