"""What a forgetting matrix says: backward transfer and average forgetting, by documents and seeds."""

import math
import random

import pytest

from harness.report._forgetting import Scores, Way, backward_transfer, lost
from harness.report._queries import Contender


def _way(losses: dict[tuple[int, str], list[float]], trained: list[str], *, documents: int = 40, seeds: int = 2) -> Way:
    """Losses by step and domain, one a seed; documents differ by as much everywhere, which pairing takes out."""
    drawn = random.Random(0)
    hard = {d: [drawn.gauss(0, 1) for _ in range(documents)] for d in ("a", "b", "c")}
    scores: dict[tuple[int, str], Scores] = {
        (step, d): {f"{d}{n}": [v + hard[d][n] + drawn.gauss(0, 0.01) for v in values] for n in range(documents)}
        for (step, d), values in losses.items()
    }
    names = ["base", *(f"sft on {t}" for t in trained)]
    domains = sorted({d for _, d in losses})
    return Way(Contender("r", "r", "m", 1), names, ["", *trained], domains, {"loss": scores})


TWO = {
    (0, "a"): [3.0, 3.0],
    (0, "b"): [3.0, 3.0],
    (1, "a"): [1.0, 1.0],
    (1, "b"): [2.5, 2.5],
    (2, "a"): [1.5, 1.6],
    (2, "b"): [1.0, 1.0],
}


def test_what_the_second_step_took_from_the_first_domain() -> None:
    way = _way(TWO, ["a", "b"])
    # The last step's own domain has had no step after it.
    assert way.learned() == {"a": 1}
    transfer, forgotten = backward_transfer(way), lost(way)
    assert transfer is not None
    assert forgotten is not None
    assert transfer.value == pytest.approx(-0.55, abs=0.01)
    assert forgotten.value == pytest.approx(0.55, abs=0.01)
    # Paired by document: the documents' own difficulty, of deviation 1, is not in the interval; the seeds' is.
    alone = backward_transfer(_way({k: v[:1] for k, v in TWO.items()}, ["a", "b"]))
    assert alone is not None
    assert alone.high - alone.low < 0.05
    assert transfer.high - transfer.low > 0.1
    assert transfer.low < -0.55 < transfer.high


def test_domains_weigh_the_same_however_many_documents_they_have() -> None:
    losses = {(s, d): [1.0] for s in range(4) for d in "abc"}
    losses |= {(3, "a"): [2.0], (3, "b"): [1.5], (3, "c"): [0.5]}
    way = _way(losses, ["a", "b", "c"])
    short = dict(way.scores["loss"])
    short[2, "b"] = {d: s for n, (d, s) in enumerate(short[2, "b"].items()) if n < 10}
    found = backward_transfer(Way(way.who, way.steps, way.trained, way.domains, {"loss": short}))
    assert found is not None
    assert found.value == pytest.approx(-(1.0 + 0.5) / 2, abs=0.02)
    assert found.n == 50


def test_forgetting_is_from_the_best_step_and_backward_transfer_from_the_domains_own() -> None:
    losses = {(s, d): [2.0] for s in range(4) for d in "ab"}
    # The second step helps the first domain; the third takes some of that.
    losses |= {(1, "a"): [1.5], (2, "a"): [1.0], (3, "a"): [1.2]}
    way = _way(losses, ["a", "b", "b"])
    transfer, forgotten = backward_transfer(way), lost(way)
    assert transfer is not None
    assert forgotten is not None
    assert way.learned() == {"a": 1}
    assert transfer.value == pytest.approx(0.3, abs=0.02)
    assert forgotten.value == pytest.approx(0.2, abs=0.02)


def test_a_merge_at_the_end_is_a_step_that_trains_no_domain() -> None:
    losses = {(s, d): [2.0 - 0.1 * s] for s in range(4) for d in "ab"}
    way = _way(losses, ["a", "b", ""])
    assert way.learned() == {"a": 1, "b": 2}
    found = backward_transfer(way)
    assert found is not None
    assert found.value == pytest.approx((0.2 + 0.1) / 2, abs=0.01)


def test_nothing_is_said_where_nothing_was_trained_or_a_seed_is_missing() -> None:
    assert backward_transfer(_way(TWO, ["", ""])) is None
    missing = {**TWO, (2, "a"): [1.5]}
    assert backward_transfer(_way(missing, ["a", "b"])) is None
    gone = {k: v for k, v in TWO.items() if k != (2, "a")}
    assert lost(_way(gone, ["a", "b"])) is None
    one = backward_transfer(_way(TWO, ["a", "b"], documents=1))
    assert one is not None
    assert math.isnan(one.low)
