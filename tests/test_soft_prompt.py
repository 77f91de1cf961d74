"""Soft prompts: a model measured with one gives what peft's own forward pass with the prompt before the input gives."""

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from harness.data import DataSource
from harness.errors import UserError
from harness.measure.scoring import Engine
from harness.method import LoadedModel, Trained, find_method
from harness.models import load_model
from tests.methods.helpers import Log, instructions, make_context, make_inputs

TOKENS = 5


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prompt tuning leaves."""
    method, scratch = find_method("sft"), tmp_path_factory.mktemp("scratch")
    params = method.params.model_validate(
        {"adapter": "prompt_tuning", "prompt_tokens": TOKENS, "lora_merge": False, "steps": 3, "learning_rate": 0.3}
    )
    trained = method().run(make_inputs(tiny_model, instructions(24, 1)), params, make_context(scratch, Log()))
    folder = tmp_path_factory.mktemp("artifact") / "tuned"
    folder.mkdir()
    assert isinstance(trained, Trained)
    assert trained.write is not None
    trained.write(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """peft's own model, which puts the vectors before the input itself."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), folder / "adapter").eval()


def _right(plain: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] at each place of one row."""
    with torch.no_grad():
        found: torch.Tensor = plain(input_ids=torch.tensor([ids])).logits[0, TOKENS:].log_softmax(-1)
    return found


def test_the_loaded_model_is_the_tuned_one(loaded: LoadedModel, plain: Any, tiny_model: Path) -> None:
    base = load_model(tiny_model).model
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found = loaded.model(input_ids=ids).logits[0].log_softmax(-1)
        without = base(input_ids=ids).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, _right(plain, ids[0].tolist()), atol=1e-4, rtol=1e-4)
    assert (found - without).abs().max() > 0.1
    assert type(loaded.model) is type(base)
    assert loaded.model.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), base.parameters(), strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cache_and_padding_on_the_left_change_nothing(folder: Path, plain: Any, attention: str) -> None:
    loaded = load_model(folder, attention=attention)
    rows = [[7, 30, 12, 55, 9], [40, 41]]
    ids = torch.tensor([rows[0], [0, 0, 0, *rows[1]]])
    mask = torch.tensor([[1] * 5, [0, 0, 0, 1, 1]])
    wanted = 6
    with torch.no_grad():
        found = loaded.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=wanted, min_new_tokens=wanted, do_sample=False
        )
    for row, text in zip(found[:, 5:].tolist(), rows, strict=True):
        whole = list(text)
        eos = loaded.model.generation_config.eos_token_id
        for token in row:
            likely = _right(plain, whole)[-1]
            likely[eos] = -torch.inf
            assert token == int(likely.argmax())
            whole.append(token)


def test_a_long_prompt_may_be_read_in_parts(loaded: LoadedModel, plain: Any) -> None:
    ids = list(range(5, 25))
    with torch.no_grad():
        first = loaded.model(input_ids=torch.tensor([ids[:8]]), use_cache=True)
        rest = loaded.model(input_ids=torch.tensor([ids[8:]]), past_key_values=first.past_key_values).logits[0]
    torch.testing.assert_close(rest.log_softmax(-1), _right(plain, ids)[8:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [8, 2048])
def test_scoring_and_decoding_over_a_tree_see_it(loaded: LoadedModel, plain: Any, tokens: int) -> None:
    engine = Engine(loaded.model, tokens)
    assert engine.fallback is None
    shared = list(range(30, 50))
    rows = [[*shared, 7, 8, 9], [*shared, 7, 60], [*shared[:6], 61], [3, 4], [70]]
    for row, (found, greedy) in zip(rows[:-1], engine.score([(row, 1) for row in rows[:-1]]), strict=True):
        right = _right(plain, row[:-1])[-1]
        assert found == pytest.approx(float(right[row[-1]]), abs=1e-4)
        assert greedy == (int(right.argmax()) == row[-1])
    for row, answer in zip(rows, engine.generate(rows, 5), strict=True):
        whole = list(row)
        for token in answer.tokens:
            assert token == int(_right(plain, whole)[-1].argmax())
            whole.append(token)


def test_plain_batches_score_alike(loaded: LoadedModel) -> None:
    tree, plain = Engine(loaded.model), Engine(loaded.model)
    plain.fallback = "asked for"
    rows = [[5, 6, 7, 8], [5, 6, 9], [40, 41, 42, 43, 44]]
    for one, other in zip(tree.score([(r, 2) for r in rows]), plain.score([(r, 2) for r in rows]), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]
    assert [g.tokens for g in tree.generate(rows, 4)] == [g.tokens for g in plain.generate(rows, 4)]


def test_tasks_gold_and_profiles_measure_it(loaded: LoadedModel, folder: Path, tiny_model: Path) -> None:
    from harness.measure._torch_session import TorchSession
    from harness.measure._weights import resident_bytes
    from harness.measure.tasks import measure_tasks
    from harness.suite import Task
    from harness.targets import Target

    def scores(model: LoadedModel, scorer: Literal["prefix-tree", "hf"]) -> list[object]:
        rows = measure_tasks(model, DataSource("bundled"), {"hellaswag": Task(limit=4)}, ("final",), scorer)
        return [r["score"] for r in rows["hellaswag"] if r["metric"] == "acc"]

    assert scores(loaded, "prefix-tree") == scores(loaded, "hf")
    session = TorchSession.load(folder, Target(name="t"), 8, 4)
    session.prepare()
    import numpy as np

    tokens = session.begin(np.arange(40, 48)[None])
    with torch.no_grad():
        right = loaded.model(torch.arange(40, 48)[None]).logits[0, -1].argmax()
    assert int(session.step(tokens)) == int(right)
    # Keys and values of 2 layers, 2 heads of 16.
    held = 2 * 2 * 2 * 16 * TOKENS * 4
    assert session.weight_bytes() == resident_bytes(load_model(tiny_model).model) + held


def test_it_takes_the_type_of_the_weights_and_room_in_the_window(folder: Path, tiny_model: Path) -> None:
    model = load_model(folder, dtype="bfloat16").model
    assert {p.dtype for n, p in model.named_buffers() if "soft_prompt" in n} == {torch.bfloat16}
    assert model(input_ids=torch.arange(5, 25)[None]).logits.dtype == torch.bfloat16
    window = load_model(tiny_model).model.config.max_position_embeddings
    assert model.config.max_position_embeddings == window - TOKENS


def test_it_runs_compiled(loaded: LoadedModel, plain: Any) -> None:
    compiled: Any = torch.compile(loaded.model, backend="eager", fullgraph=False)
    ids = list(range(5, 15))
    with torch.no_grad():
        found = compiled(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, _right(plain, ids), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_exact_is_refused(folder: Path, tmp_path: Path) -> None:
    import safetensors.torch

    with pytest.raises(UserError, match=r"sdpa or eager attention, not by flex_attention: leave the target's"):
        load_model(folder, attention="flex_attention")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    safetensors.torch.save_file(
        {"prompt_embeddings": torch.zeros(3, 7)}, broken / "adapter" / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match="holds no soft prompt for a model of width 64"):
        load_model(broken)
