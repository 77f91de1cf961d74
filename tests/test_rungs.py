"""Who is stopped at a rung, and who never is: the pure decisions, by hand and by properties."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon  # type: ignore[import-untyped]  # scipy ships no types

from harness._signedrank import signed_rank
from harness.errors import UserError
from harness.execute import MeasureSpec
from harness.rungs import (
    HopelessError,
    MeasureRungs,
    Point,
    StageJudge,
    StageRungs,
    judge_curve,
    judge_documents,
    judge_scores,
    places,
    rung_values,
    split,
)
from harness.search import Past, suggest
from harness.suite import Space, load_suite

finite = st.floats(-1e6, 1e6)
unit = st.floats(0, 1)


def _curve(*values: float, total: int | None = None) -> list[Point]:
    return [Point(i + 1, total or len(values), v) for i, v in enumerate(values)]


def _rungs(
    *rivals: tuple[float | None, ...], keep: float = 0.5, after: int = 3, at: tuple[float, ...] = (0.5,)
) -> StageRungs:
    return StageRungs(at=at, direction="minimize", metric="loss", keep=keep, after=after, rivals=rivals)


def _stopped(rungs: StageRungs, points: list[Point]) -> HopelessError | None:
    try:
        judge_curve(rungs, points)
    except HopelessError as error:
        return error
    return None


def test_a_rung_is_the_mean_since_the_one_before() -> None:
    assert rung_values(_curve(8, 6, 4, 2), (0.25, 0.75)) == [8, 5]
    # Logged every other step; a rung is where the first one at or beyond it is logged.
    assert rung_values([Point(2, 8, 1.0), Point(4, 8, 3.0), Point(6, 8, 5.0)], (0.3, 0.75, 0.9)) == [2, 5]
    # Two rungs at one step.
    assert rung_values(_curve(7, 1), (0.25, 0.5)) == [7, 7]
    assert rung_values(_curve(7, math.nan, 3, 3), (0.5, 1.0)) == [None, 3]
    assert rung_values([], (0.5,)) == []


def test_a_trial_goes_on_among_the_best_of_itself_and_its_rivals() -> None:
    three = _rungs((1.0, 2.0, 3.0))
    assert _stopped(three, _curve(2, 2, 9, 9)) is None
    error = _stopped(three, _curve(2.5, 2.5, 0, 0))
    assert error is not None
    assert (error.step, error.reached) == (2, {1: 2.5})
    assert "rung 1 of 1 of the training, step 2 of 4: loss 2.5, where 2 was needed to be among the best 2 of 4" in str(
        error
    )
    # Fewer rivals than `after`: nobody is stopped.
    assert _stopped(_rungs((1.0, 2.0)), _curve(99, 99)) is None
    # A tie goes on.
    assert _stopped(_rungs((1.0, 1.0, 1.0), keep=0.25), _curve(1, 1)) is None
    # What is not finite is worse than any number.
    assert _stopped(_rungs((1.0, 2.0, None)), _curve(math.nan, 1)) is not None
    assert _stopped(_rungs((None, None, None)), _curve(math.nan, 1)) is None
    up = _rungs((1.0, 2.0, 3.0)).model_copy(update={"direction": "maximize", "first": 3})
    error = _stopped(up, _curve(1.5, 1.5))
    assert error is not None
    assert error.reached == {3: 1.5}


def test_a_share_of_the_trials_goes_on() -> None:
    assert [places(0.5, n) for n in range(6)] == [1, 1, 2, 2, 3, 3]
    assert places(0.1, 29) == 3
    assert places(0.01, 3) == 1


@given(st.lists(finite, max_size=12), finite, st.floats(0.05, 0.95), st.integers(1, 5))
def test_better_never_fares_worse_and_the_best_is_never_stopped(
    rivals: list[float], value: float, keep: float, after: int
) -> None:
    rungs = _rungs(tuple(rivals), keep=keep, after=after)
    own = _stopped(rungs, _curve(value, value))
    if own is None:
        assert _stopped(rungs, _curve(value - 1, value - 1)) is None
    else:
        assert min(rivals) < value
        assert len(rivals) >= after
    assert _stopped(rungs, _curve(min([*rivals, value]), 0)) is None


@given(st.lists(finite, min_size=4, max_size=20), st.lists(st.lists(finite, max_size=6), min_size=2, max_size=2))
def test_a_stored_curve_is_judged_as_a_growing_one(values: list[float], rivals: list[list[float]]) -> None:
    rungs = _rungs(*map(tuple, rivals), at=(0.25, 0.5), after=1)
    points = _curve(*values)
    whole = _stopped(rungs, points)
    judge, seen, error = StageJudge(rungs), 0, None
    for point in points:
        try:
            judge.see(point)
        except HopelessError as found:
            error = found
            break
        seen += 1
    assert (error is None) == (whole is None)
    if error is not None and whole is not None:
        assert (str(error), error.step, error.reached) == (str(whole), whole.step, whole.reached)
        # What a stopped stage leaves is enough to come to the same again.
        assert str(_stopped(rungs, points[: seen + 1])) == str(whole)


@given(st.lists(st.text("0123456789abcdef", min_size=4, max_size=4), unique=True), st.lists(unit, max_size=3))
def test_parts_hold_every_document_once_in_the_order_of_hashes(documents: list[str], fractions: list[float]) -> None:
    at = sorted(fractions)
    parts = split(documents, at)
    assert len(parts) == len(at) + 1
    assert sorted(i for part in parts for i in part) == list(range(len(documents)))
    named = [[documents[i] for i in part] for part in parts]
    assert [d for part in named for d in sorted(part)] == sorted(documents)
    # Documents in another order are in the same parts.
    other = split(documents[::-1], at)
    assert [{documents[::-1][i] for i in part} for part in other] == [set(part) for part in named]


def _brute(differences: list[float]) -> float:
    sizes = [abs(d) for d in differences if d]
    rank = {s: sum(o < s for o in sizes) + (sizes.count(s) + 1) / 2 for s in sizes}
    observed = sum(rank[abs(d)] for d in differences if d > 0)
    signs = itertools.product((0, 1), repeat=len(sizes))
    sums = [sum(rank[s] for s, up in zip(sizes, way, strict=True) if up) for way in signs]
    return sum(s <= observed for s in sums) / len(sums)


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_the_signed_rank_test_counts_every_way_of_signs(differences: list[int]) -> None:
    values = [float(d) for d in differences]
    assert signed_rank(values) == pytest.approx(_brute(values) if any(values) else 1.0)


@settings(max_examples=30)
@given(st.lists(st.integers(-(10**6), 10**6).filter(bool), min_size=3, max_size=120, unique_by=abs))
def test_the_signed_rank_test_is_scipys_where_that_is_exact(sizes: list[int]) -> None:
    differences = [size / 10**6 for size in sizes]
    exact = "exact" if len(differences) <= 50 else "auto"
    expected = wilcoxon(differences, alternative="less", method=exact).pvalue
    assert signed_rank(differences) == pytest.approx(expected, abs=2e-3)


def _documents(rival: dict[str, float], **more: object) -> MeasureRungs:
    fields = {
        "at": (0.5,),
        "direction": "maximize",
        "p": 0.1,
        "metrics": {"m": "acc"},
        "tasks": {"m": "t"},
        "against": 2,
    }
    return MeasureRungs.model_validate({**fields, "rival": {"m": rival}, **more})


def test_worse_on_the_documents_so_far_is_stopped() -> None:
    rival = {f"{i:04x}": 1.0 for i in range(10)}
    rungs = _documents(rival)
    with pytest.raises(HopelessError) as caught:
        judge_scores(rungs, {"m": dict.fromkeys(rival, 0.0)})
    assert caught.value.reached == {1: 0.0}
    assert "rung 1 of 1 of the documents: 0 on the first 5, where trial 2 has 1 " in str(caught.value)
    judge_scores(rungs, {"m": rival})
    # Only what lies up to the rung is looked at.
    late = {d: float(i < 5) for i, d in enumerate(rival)}
    judge_scores(rungs, {"m": late})
    # Three documents hold no p below 0.1.
    judge_documents(rungs, 0, {"m": dict.fromkeys(list(rival)[:3], 0.0)})
    # Documents that the rival lacks count for nothing.
    judge_documents(rungs, 0, {"m": {f"x{i}": 0.0 for i in range(20)}})
    assert judge_documents(rungs, 0, {"m": {}}) is None
    with pytest.raises(HopelessError):
        judge_scores(_documents(dict.fromkeys(rival, 0.0), direction="minimize"), {"m": rival})


def test_the_value_at_a_rung_is_the_objective_over_tasks() -> None:
    rungs = _documents({}, metrics={"a": "acc", "b": "acc", "c": "acc"}, tasks={"a": "one", "b": "one", "c": "two"})
    scores = {"a": {"1": 1.0, "2": 0.0}, "b": {"3": 1.0, "4": 1.0}, "c": {"5": 0.0}}
    assert judge_documents(rungs, 0, scores) == pytest.approx((0.75 + 0.0) / 2)


@given(st.dictionaries(st.text("0123456789abcdef", min_size=4, max_size=4), st.tuples(unit, unit), max_size=40))
def test_who_is_better_in_the_mean_is_never_stopped(both: dict[str, tuple[float, float]]) -> None:
    rungs = _documents({d: rival for d, (_, rival) in both.items()})
    own = {d: mine for d, (mine, _) in both.items()}
    try:
        judge_documents(rungs, 0, {"m": own})
    except HopelessError:
        assert sum(own.values()) < sum(rival for _, rival in both.values())


SPACE = {"a.x": Space(low=0.0, high=1.0)}


def _pruned(best: float, state: str = "pruned") -> list[Past]:
    xs = [(i + 0.5) / 24 for i in range(24)]
    values = [{1: -abs(x - best)} for x in xs]
    return [
        Past(i, {"a.x": x}, state, intermediate=v)  # type: ignore[arg-type]  # one of Past's states
        for i, (x, v) in enumerate(zip(xs, values, strict=True))
    ]


def _drawn(history: list[Past]) -> list[float]:
    cells = (suggest(SPACE, history, 24, seed=f"s{i}", sampler="tpe", directions=["maximize"]) for i in range(12))
    return [float(drawn["a.x"] or 0) for drawn in cells]


def test_the_sampler_learns_from_where_trials_were_pruned() -> None:
    low, high = _drawn(_pruned(0.2)), _drawn(_pruned(0.8))
    assert sum(low) / 12 < 0.35
    assert sum(high) / 12 > 0.65
    assert _drawn(_pruned(0.2)[::-1]) == low
    # Of a trial that failed it learns nothing.
    assert _drawn(_pruned(0.2, "failed")) == _drawn(_pruned(0.8, "failed"))


def test_a_later_rung_is_better_than_an_earlier_one() -> None:
    late = [
        Past(p.number, p.settings, "pruned", intermediate={1: 0.0} if p.settings["a.x"] < 0.8 else {1: 0.0, 2: -9.0})  # type: ignore[operator]  # a number here
        for p in _pruned(0.5)
    ]
    assert sum(_drawn(late)) / 12 > 0.65


@pytest.mark.parametrize("directions", [["maximize", "minimize"], ["minimize"]])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_every_sampler_takes_pruned_trials(sampler: str, directions: list[str]) -> None:
    whole = [Past(24 + i, {"a.x": i / 8}, "complete", tuple(float(i) for _ in directions)) for i in range(8)]
    drawn = suggest(SPACE, [*_pruned(0.2), *whole], 40, seed="s", sampler=sampler, directions=directions)  # type: ignore[arg-type]  # as a suite has them
    assert 0 <= float(drawn["a.x"] or 0) <= 1


SUITE = """name: early
models: [smollm2-135m-instruct]
recipes: {a: [{sft: {learning_rate: search}}]}
measure: {gold: {}, profile: {}, judge: {}, tasks: {truthfulqa_mc1: {}}}
objectives: OBJECTIVES
early_stopping: EARLY
budget: {trials_per_cell: 4}
"""


@pytest.mark.parametrize(
    ("objectives", "early", "message"),
    [
        ("{gold_reward: maximize}", "{}", r"6:17.*no rungs; give training or documents"),
        ("{gold_reward: maximize, kl: minimize}", "{documents: {}}", r"6:18.*a single objective that is a mean over"),
        ("{latency_ms: minimize}", "{documents: {}}", r"6:18.*documents: expected a single objective.*got latency_ms"),
        ("{helpfulness: maximize}", "{documents: {}}", r"6:18.*gold_reward, rm_reward, score or <task>.<metric>"),
        ("{kl: minimize}", "{documents: {}}", r"6:18.*got kl"),
        ("{gold_reward: maximize}", "{training: {metric: loss, rungs: [0.5, 0.2]}}", r"6:\d+.*rising fractions"),
        ("{gold_reward: maximize}", "{training: {}}", r"6:18.*metric is required"),
    ],
)
def test_a_suite_that_cannot_be_stopped_so_is_refused(
    tmp_path: Path, objectives: str, early: str, message: str
) -> None:
    path = tmp_path / "early.yaml"
    path.write_text(SUITE.replace("OBJECTIVES", objectives).replace("EARLY", early))
    with pytest.raises(UserError, match=message):
        load_suite(path)


@pytest.mark.parametrize("objective", ["gold_reward", "score", "truthfulqa_mc1.acc"])
def test_a_mean_over_documents_can_be_stopped_by(tmp_path: Path, objective: str) -> None:
    path = tmp_path / "early.yaml"
    path.write_text(SUITE.replace("OBJECTIVES", f"{{{objective}: maximize}}").replace("EARLY", "{documents: {}}"))
    suite = load_suite(path)
    assert suite.early_stopping is not None
    assert suite.early_stopping.documents is not None


def test_rungs_never_touch_the_final_half() -> None:
    fields = {
        "key": "k",
        "model": "m",
        "artifact": "a",
        "target": {},
        "data": "bundled",
        "scorer": "hf",
        "items": (),
        "base": "b",
    }
    rungs = _documents({})
    assert MeasureSpec.model_validate({**fields, "halves": ("tune",), "rungs": rungs}).rungs == rungs
    for halves in (("final",), ("tune", "final")):
        with pytest.raises(ValueError, match="tuning documents only"):
            MeasureSpec.model_validate({**fields, "halves": halves, "rungs": rungs})
