"""The gold measure on a tiny model: identities, seeds, KL, reward model, and what it refuses."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from harness.errors import MeasurementError, PrunedError, UserError
from harness.gold import gold_reward, parse_constraints
from harness.measure.gold import gold_documents, gold_fingerprint, measure_gold
from harness.method import LoadedModel
from harness.models import load_model


@dataclass(frozen=True)
class _Settings:
    limit: int | None = None
    max_new_tokens: int = 12
    temperature: float = 1.0
    batch_size: int = 3
    seed: int = 0


ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Tell me about the number {n}. Use at most {n + 3} words."}],
        "constraints": json.dumps([{"kind": "max_words", "value": n + 3}, {"kind": "no_comma"}]),
    }
    for n in range(10)
]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def moved(tiny_model: Path) -> LoadedModel:
    loaded = load_model(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return loaded


def _by_metric(rows: list[dict[str, object]]) -> dict[str, dict[str, dict[str, object]]]:
    found: dict[str, dict[str, dict[str, object]]] = defaultdict(dict)
    for row in rows:
        found[str(row["metric"])][str(row["document"])] = row
    return found


def test_the_base_is_at_zero_kl_and_its_gold_reward_is_that_of_its_text(base: LoadedModel) -> None:
    found = _by_metric(measure_gold(base, ROWS, None, base, _Settings(), ["tune", "final"]))
    assert set(found) == {"gold_reward", "kl", "length"}
    assert all(len(rows) == len(ROWS) for rows in found.values())
    assert all(row["score"] == 0.0 for row in found["kl"].values())
    for row in found["gold_reward"].values():
        assert row["score"] == gold_reward(str(row["response"]), parse_constraints(str(row["expected"])))
        assert str(row["prompt"]).endswith("<|im_start|>assistant\n")
    assert all(1 <= float(str(row["score"])) <= 12 for row in found["length"].values())


def test_kl_is_the_difference_of_the_log_likelihoods(base: LoadedModel, moved: LoadedModel) -> None:
    settings = _Settings(temperature=0.0)
    found = _by_metric(measure_gold(moved, ROWS[:3], None, base, settings, ["tune", "final"]))
    for document in gold_documents(ROWS[:3]):
        row = found["kl"][document.identity]
        ids = moved.tokenizer(str(row["prompt"]), add_special_tokens=False)["input_ids"]
        total = 0.0
        # The greedy response again, by the plain forward pass.
        for _ in range(int(float(str(found["length"][document.identity]["score"])))):
            with torch.inference_mode():
                own, other = (m.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for m in (moved, base))
            token = int(own.argmax())
            total += float(own[token] - other[token])
            ids = [*ids, token]
        assert row["score"] == pytest.approx(total, abs=1e-3)
    assert any(abs(float(str(r["score"]))) > 0.01 for r in found["kl"].values())


def test_a_response_depends_on_seed_and_document_alone(moved: LoadedModel, base: LoadedModel) -> None:
    def responses(settings: _Settings, halves: list[str], rows: list[dict[str, object]]) -> dict[str, object]:
        found = _by_metric(measure_gold(moved, rows, None, base, settings, halves))  # type: ignore[arg-type]
        return {d: r["response"] for d, r in found["gold_reward"].items()}

    whole = responses(_Settings(), ["tune", "final"], ROWS)
    tune, final = (responses(_Settings(), [h], ROWS) for h in ("tune", "final"))
    assert tune
    assert final
    assert not tune.keys() & final.keys()
    assert tune | final == whole
    assert responses(_Settings(limit=4), ["tune", "final"], ROWS).items() <= whole.items()
    assert responses(_Settings(), ["tune", "final"], ROWS[::-1]) == whole
    assert responses(_Settings(seed=1), ["tune", "final"], ROWS) != whole


def test_measured_in_parts_every_response_and_score_is_the_same(moved: LoadedModel, base: LoadedModel) -> None:
    whole = measure_gold(moved, ROWS, None, base, _Settings(), ["tune", "final"])
    looks: list[tuple[int, set[object]]] = []
    parts = measure_gold(
        moved,
        ROWS,
        None,
        base,
        _Settings(),
        ["tune", "final"],
        at=(0.25, 0.5),
        look=lambda rung, rows: looks.append((rung, {r["document"] for r in rows})),
    )
    assert parts == whole
    in_order = sorted({str(r["document"]) for r in whole})
    assert looks == [(0, set(in_order[:3])), (1, set(in_order[:5]))]


def test_a_look_ends_the_measuring(moved: LoadedModel, base: LoadedModel) -> None:
    def look(rung: int, rows: object) -> None:
        raise PrunedError(f"at {rung}")

    with pytest.raises(PrunedError, match="at 0"):
        measure_gold(moved, ROWS, None, base, _Settings(), ["tune"], at=(0.5,), look=look)


def test_the_reward_model_scores_the_conversation(base: LoadedModel, tiny_model: Path) -> None:
    reward = load_model(tiny_model, head="reward")
    torch.manual_seed(2)
    torch.nn.init.normal_(reward.model.get_submodule("score").weight)
    found = _by_metric(measure_gold(base, ROWS, reward, base, _Settings(), ["tune", "final"]))
    for document in gold_documents(ROWS):
        row = found["rm_reward"][document.identity]
        text = reward.tokenizer.apply_chat_template(
            [*document.prompt, {"role": "assistant", "content": row["response"]}], tokenize=False
        )
        ids = torch.tensor([reward.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            alone = reward.model(ids).logits.item()
        assert row["score"] == pytest.approx(alone, abs=1e-4)
    assert len({row["score"] for row in found["rm_reward"].values()}) > 1


def test_broken_weights_and_rows_are_refused(base: LoadedModel, tiny_model: Path) -> None:
    broken = load_model(tiny_model)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(MeasurementError, match="NaN"):
        measure_gold(broken, ROWS, None, base, _Settings(), ["tune", "final"])
    with pytest.raises(UserError, match="constraints"):
        gold_documents([{"prompt": ROWS[0]["prompt"]}])
    with pytest.raises(UserError, match="kinds"):
        gold_documents([{**ROWS[0], "constraints": '[{"kind": "rhyme"}]'}])


def test_the_fingerprint_follows_the_documents() -> None:
    assert gold_fingerprint(ROWS) == gold_fingerprint([dict(r) for r in ROWS])
    assert gold_fingerprint(ROWS) != gold_fingerprint(ROWS, 9)
    assert len({d.identity for d in gold_documents([ROWS[0], ROWS[0]])}) == 2
