"""DPO's losses: each against its paper's formula at known log-ratios, and what each refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.models import load_model
from methods._rows import preference_rows
from methods.dpo import DPO, DPOParams, _make_trainer
from tests.methods.helpers import Log, make_context, make_inputs, preferences

BETA, SMOOTHING = 0.3, 0.2
# Log-ratios (nats) of two pairs, chosen so that sorting each side by itself changes which are compared.
CHOSEN, REJECTED = (1.5, -0.5), (0.25, -2.0)
LOSSES = [
    "sigmoid",
    "cdpo",
    "robust",
    "ipo",
    "hinge",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
]
SMOOTHED = ("cdpo", "robust", "exo_pair", "aot", "aot_unpaired")


def _s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _l(x: float) -> float:
    return -math.log(_s(x))


def _pair(loss: str, c: float, r: float, length: tuple[int, int]) -> float:
    d, e = BETA * (c - r), SMOOTHING
    tau = 0.05
    p = _s(d)
    return {
        "sigmoid": _l(d),
        "cdpo": (1 - e) * _l(d) + e * _l(-d),
        "robust": ((1 - e) * _l(d) - e * _l(-d)) / (1 - 2 * e),
        "ipo": (c / length[0] - r / length[1] - 1 / (2 * BETA)) ** 2,
        "hinge": max(0.0, 1 - d),
        "exo_pair": p * math.log(p / (1 - e)) + (1 - p) * math.log((1 - p) / e),
        "nca_pair": _l(BETA * c) + 0.5 * _l(-BETA * c) + 0.5 * _l(-BETA * r),
        "bco_pair": _l(BETA * c) + _l(-BETA * r),
        "sppo_hard": (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
        "apo_zero": 1 - _s(BETA * c) + _s(BETA * r),
        "apo_down": _s(BETA * c) + 1 - _s(d),
        "discopop": _l(d) * (1 - _s(d / tau)) + math.exp(-d) * _s(d / tau),
        "sigmoid_norm": _l(BETA * (c / length[0] - r / length[1])),
    }[loss]


def _paper(loss: str, policy: list[tuple[float, float]], lengths: list[tuple[int, int]]) -> float:
    """The mean loss; `policy` has the log-probabilities of chosen and rejected answers, pair by pair."""
    if loss == "aot_unpaired":
        pairs = list(zip(sorted(CHOSEN), sorted(REJECTED), strict=True))
        return sum(_pair("cdpo", c, r, (1, 1)) for c, r in pairs) / 2
    if loss == "aot":
        own = sorted(c - r for c, r in policy)
        reference = sorted((c - a) - (r - b) for (c, r), a, b in zip(policy, CHOSEN, REJECTED, strict=True))
        return sum(_pair("cdpo", o, ref, (1, 1)) for o, ref in zip(own, reference, strict=True)) / 2
    return sum(_pair(loss, c, r, n) for c, r, n in zip(CHOSEN, REJECTED, lengths, strict=True)) / 2


@pytest.fixture(scope="module")
def batch(tiny_model: Path) -> dict[str, Any]:
    """Two pairs of unequal length, the model, and its log-probabilities."""
    loaded = load_model(tiny_model)
    rows = preference_rows(preferences(2, 3), loaded.tokenizer, 512)
    rows[0]["chosen_ids"] = rows[0]["chosen_ids"][:-3]
    return {"loaded": loaded, "rows": rows}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_its_papers(loss: str, batch: dict[str, Any], tmp_path: Path) -> None:
    loaded, rows = batch["loaded"], batch["rows"]
    smoothing = SMOOTHING if loss in SMOOTHED else 0.0
    params = DPOParams(loss_type=loss, beta=BETA, label_smoothing=smoothing, steps=1, batch_size=2)  # type: ignore[arg-type]  # a name from the list
    trainer: Any = _make_trainer(loaded.model, loaded.tokenizer, rows, params, make_context(tmp_path, Log()))
    tensors = dict(trainer.data_collator(rows))
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, tensors)
    tensors["ref_chosen_logps"] = chosen - torch.tensor(CHOSEN)
    tensors["ref_rejected_logps"] = rejected - torch.tensor(REJECTED)
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    assert lengths[0][0] != lengths[0][1]
    policy = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    found = trainer.compute_loss(trainer.model, tensors)
    assert found.item() == pytest.approx(_paper(loss, policy, lengths), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_widens_the_margin(loss: str, tiny_model: Path, tmp_path: Path) -> None:
    log = Log()
    params = DPOParams(
        loss_type=loss,  # type: ignore[arg-type]  # a name from the list
        label_smoothing=1e-3 if loss in ("cdpo", "exo_pair") else 0.0,
        # Below 0.102 the slope of this loss at a margin of 0, where training begins, points down.
        discopop_tau=1.0 if loss == "discopop" else 0.05,
        steps=6,
        batch_size=6,
        learning_rate=1e-3,
    )
    DPO().run(make_inputs(tiny_model, preferences(36, 1)), params, make_context(tmp_path, log))
    assert log.values("rewards_margin")[0] == 0.0
    assert log.values("rewards_margin")[-1] > 0
    assert log.values("rewards_accuracy")[-1] > 0.5
    if loss == "apo_down":
        assert log.values("rewards_chosen")[-1] < 0
    if loss in ("nca_pair", "sppo_hard", "apo_zero"):
        assert log.values("rewards_rejected")[-1] < 0


def test_settings_that_a_loss_does_not_have_are_refused() -> None:
    for loss in set(LOSSES) - set(SMOOTHED):
        with pytest.raises(ValidationError, match=f"label_smoothing is not used by loss_type {loss}.*cdpo, robust"):
            DPOParams(loss_type=loss, label_smoothing=0.1)  # type: ignore[arg-type]  # a name from the list
    for loss in ("cdpo", "exo_pair"):
        with pytest.raises(ValidationError, match=f"loss_type {loss} needs label_smoothing above 0"):
            DPOParams(loss_type=loss)  # type: ignore[arg-type]  # a name from the list
    with pytest.raises(ValidationError, match="discopop_tau is not used by loss_type sigmoid"):
        DPOParams(discopop_tau=0.1)
    for loss in ("aot", "aot_unpaired"):
        with pytest.raises(ValidationError, match=f"{loss} compares the pairs of a batch.*batch_size above 1"):
            DPOParams(loss_type=loss, batch_size=1)  # type: ignore[arg-type]  # a name from the list


def test_what_was_trained_before_there_were_more_losses_is_found_again() -> None:
    stored = DPOParams().model_dump(mode="json")
    assert (stored["loss_type"], stored["label_smoothing"]) == ("sigmoid", 0.0)
    assert "discopop_tau" not in stored
    assert DPOParams(loss_type="discopop", discopop_tau=0.1).model_dump(mode="json")["discopop_tau"] == 0.1
