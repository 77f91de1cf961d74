"""KTO, ORPO, CPO and SimPO: each loss is its paper's, and each does what it is for on pairs it has not seen."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import InfeasibleError
from harness.method import find_method
from harness.models import load_model
from methods._reference_free import Side
from methods._rows import preference_rows
from methods.cpo import CPO, CPOParams
from methods.kto import KTO, KTOParams, _answers
from methods.orpo import ORPO, ORPOParams
from methods.simpo import SimPO, SimPOParams
from tests.methods.helpers import Log, completion_log_prob, make_context, make_inputs, preferences

QUICK: dict[str, Any] = {"steps": 20, "batch_size": 8, "learning_rate": 1e-3}
NAMES = ("kto", "orpo", "cpo", "simpo")


def run(name: str, folder: Path, scratch: Path, log: Log, dataset: Any = None, **params: Any) -> Any:
    method = find_method(name)
    settings = method.params.model_validate({**QUICK, **params})
    return method().run(make_inputs(folder, dataset or preferences(200, 1)), settings, make_context(scratch, log))


def sides(folder: Path, model: Any, dataset: Any) -> tuple[list[float], list[float]]:
    """Mean log-probability a token of the chosen and of the rejected answers."""
    loaded = load_model(folder)
    found: tuple[list[float], list[float]] = ([], [])
    for row in dataset:
        for values, side in zip(found, ("chosen", "rejected"), strict=True):
            total, tokens = completion_log_prob(loaded, model, row["prompt"], row[side])
            values.append(total / tokens)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_chosen_answers_become_likelier_than_rejected_ones(name: str, tiny_model: Path, tmp_path: Path) -> None:
    unseen = preferences(20, 2)
    before = sides(tiny_model, load_model(tiny_model).model, unseen)
    log = Log()
    trained = run(name, tiny_model, tmp_path, log)
    after = sides(tiny_model, trained.model, unseen)
    gained = [(c - r) - (a - b) for c, r, a, b in zip(*after, *before, strict=True)]
    assert sum(g > 0 for g in gained) > 0.9 * len(gained)
    assert log.values("loss")[-1] < log.values("loss")[0]
    if name in ("orpo", "cpo"):
        # The likelihood of the chosen answers themselves is part of these losses.
        assert sum(after[0]) > 0.8 * sum(before[0])
        assert log.values("nll")[-1] < log.values("nll")[0]


@pytest.mark.parametrize("name", ["orpo", "cpo", "simpo"])
def test_no_reference_is_held_or_asked(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel
    from trl import DPOTrainer

    inputs = make_inputs(tiny_model, preferences(40, 1))
    inputs.load("policy")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a second model, or a forward pass for one")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refused)
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", refused)
    method = find_method(name)
    method().run(inputs, method.params.model_validate({**QUICK, "steps": 1}), make_context(tmp_path, Log()))


@pytest.mark.parametrize("name", ["orpo", "cpo", "simpo"])
def test_the_first_loss_is_that_of_the_plain_model(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """By log-probabilities from full logits, pair by pair, and the formula of the paper."""
    rows = preferences(4, 1)
    loaded = load_model(tiny_model)
    expected = []
    for row in rows:
        (c, m), (r, n) = (
            completion_log_prob(loaded, loaded.model, row["prompt"], row[side]) for side in ("chosen", "rejected")
        )
        sigmoid = {
            "simpo": lambda c=c, r=r, m=m, n=n: 2.0 * (c / m - r / n) - 1.0,
            "cpo": lambda c=c, r=r: 0.1 * (c - r),
            "orpo": lambda c=c, r=r, m=m, n=n: (
                c / m - math.log(1 - math.exp(c / m)) - r / n + math.log(1 - math.exp(r / n))
            ),
        }[name]()
        preference = math.log(1 + math.exp(-sigmoid))
        expected.append({"simpo": preference, "cpo": preference - c / m, "orpo": 0.1 * preference - c / m}[name])
    log = Log()
    run(name, tiny_model, tmp_path, log, rows, steps=1, batch_size=4)
    assert log.values("loss")[0] == pytest.approx(sum(expected) / 4, rel=1e-4)


def test_gradient_accumulation_equals_the_larger_batch(tiny_model: Path, tmp_path: Path) -> None:
    whole, parts = (
        run("orpo", tiny_model, tmp_path, Log(), steps=2, batch_size=8 // n, gradient_accumulation=n).model.state_dict()
        for n in (1, 2)
    )
    assert all(torch.allclose(whole[key], parts[key], atol=1e-4) for key in whole)


def _side(values: list[float]) -> Side:
    mean = torch.tensor(values, requires_grad=True)
    return Side(summed=4 * mean, mean=mean)


def test_simpo_is_satisfied_by_its_margin() -> None:
    loss = SimPO.objective(SimPOParams(beta=2.0, gamma=1.0))
    assert loss(_side([-1.0]), _side([-1.5])).loss.item() == pytest.approx(math.log(2))
    # Length does not enter: only means do.
    mean = torch.tensor([-1.0])
    short, long = Side(2 * mean, mean), Side(50 * mean, mean)
    assert torch.equal(loss(short, long).loss, loss(long, short).loss)


def test_orpo_stays_finite_for_certain_answers() -> None:
    loss = ORPO.objective(ORPOParams())
    chosen = _side([0.0, -1e-9])
    found = loss(chosen, _side([-80.0, 0.0])).loss.sum()
    found.backward()  # type: ignore[no-untyped-call]  # torch
    assert torch.isfinite(found)
    assert chosen.mean.grad is not None
    assert torch.isfinite(chosen.mean.grad).all()


def test_weights_of_likelihood_and_preference() -> None:
    chosen, rejected = _side([-1.0]), _side([-2.0])
    plain = CPO.objective(CPOParams(nll_coef=0.0))(chosen, rejected)
    assert plain.loss.item() == pytest.approx(math.log(1 + math.exp(-0.4)))
    assert (CPO.objective(CPOParams(nll_coef=2.0))(chosen, rejected).loss - plain.loss).item() == pytest.approx(2.0)
    # Without its odds ratio ORPO is supervised fine-tuning on the chosen answers.
    assert ORPO.objective(ORPOParams(beta=0.0))(chosen, rejected).loss.item() == pytest.approx(1.0)


# -- KTO ---------------------------------------------------------------------------------------------------------------


def test_kto_takes_pairs_apart_and_shuffles_them(tiny_model: Path) -> None:
    tokenizer = load_model(tiny_model).tokenizer
    pairs = preference_rows(preferences(40, 1), tokenizer, 512)
    params = KTOParams(steps=10, batch_size=8)
    answers = _answers(pairs, params, 0)
    assert len(answers) == 80
    assert sum(answer["label"] for answer in answers) == 40
    good = {tuple(p["prompt_ids"] + p["chosen_ids"]) for p in pairs}
    assert all((tuple(a["prompt_ids"] + a["completion_ids"]) in good) == a["label"] for a in answers)
    beside = sum(a["prompt_ids"] == b["prompt_ids"] for a, b in itertools.pairwise(answers))
    assert beside < 8
    assert [a["label"] for a in answers] != [a["label"] for a in _answers(pairs, params, 1)]
    # The KL divergence is estimated from the same answers as a batch's rewards, each under another prompt.
    for start in range(0, 80, 8):
        batch = answers[start : start + 8]
        own = sorted(a["completion_ids"] for a in batch)
        assert sorted(a["KL_completion_ids"] for a in batch) == own
        assert [a["KL_completion_ids"] for a in batch[1:]] == [a["completion_ids"] for a in batch[:-1]]


def test_kto_begins_at_its_reference(tiny_model: Path, tmp_path: Path) -> None:
    inputs = make_inputs(tiny_model, preferences(12, 1))
    loaded = inputs.load("policy")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    for loss in ("kto", "apo_zero_unpaired"):
        log = Log()
        # No learning rate to speak of: later epochs bring other neighbours, and the reference is still the policy.
        params = KTOParams(loss_type=loss, steps=6, batch_size=8, learning_rate=1e-12)  # type: ignore[arg-type]  # a name from the list
        KTO().run(inputs, params, make_context(tmp_path, log))
        assert all(value == pytest.approx(0.5, abs=1e-5) for value in log.values("loss"))
        assert all(abs(value) < 1e-4 for value in log.values("kl"))
        assert log.steps[0][2]["rewards_chosen"] == log.steps[0][2]["rewards_rejected"] == 0.0


def test_kto_needs_no_pairs(tiny_model: Path, tmp_path: Path) -> None:
    """Answers whose partners belong to other prompts teach it the same."""
    import datasets

    rows = preferences(200, 1)
    rejected = [*rows["rejected"][1:], rows["rejected"][0]]
    apart = datasets.Dataset.from_list([{**row, "rejected": bad} for row, bad in zip(rows, rejected, strict=True)])
    trained = run("kto", tiny_model, tmp_path, Log(), apart)
    unseen = preferences(20, 2)
    before = sides(tiny_model, load_model(tiny_model).model, unseen)
    after = sides(tiny_model, trained.model, unseen)
    assert sum(after[0]) - sum(before[0]) > 0 > sum(after[1]) - sum(before[1])


def test_kto_weighs_good_and_bad_answers(tiny_model: Path, tmp_path: Path) -> None:
    gains = {}
    for side, weights in (("good", (1.0, 1e-3)), ("bad", (1e-3, 1.0))):
        log = Log()
        run(
            "kto", tiny_model, tmp_path, log, steps=10, batch_size=16, learning_rate=3e-4,
            desirable_weight=weights[0], undesirable_weight=weights[1],
        )  # fmt: skip
        gains[side] = (log.values("rewards_chosen")[-1], log.values("rewards_rejected")[-1])
    assert gains["good"][0] > gains["bad"][0]
    assert gains["good"][1] > gains["bad"][1]


def test_kto_refuses_a_batch_without_strangers() -> None:
    with pytest.raises(ValidationError, match=r"other prompts: set batch_size above 1, or .*apo_zero_unpaired"):
        KTOParams(batch_size=1)
    KTOParams(batch_size=1, loss_type="apo_zero_unpaired")


@pytest.mark.parametrize("name", NAMES)
def test_divergence_is_infeasible(name: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="step"):
        run(
            name, tiny_model, tmp_path, Log(), learning_rate=1e30, warmup_fraction=0.0, lr_scheduler="constant", steps=4
        )
