"""Best-of-n, rejection sampling and preferences by sampling: what is chosen, by which reward, and what is counted."""

import itertools
import math
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import pytest

from harness.errors import UserError
from harness.method import Inputs, Made, Method, Params, Turns, find_method
from harness.models import load_model
from methods.best_of_n import expected_best
from tests.methods.helpers import WORDS, Log, make_context, turn
from tests.methods.making_contract import MakingContract, scripted

REWARD = f"{__name__}:letters"
QUICK: Mapping[str, object] = {**MakingContract.quick, "n": 2, "reward": REWARD}


def letters(_prompt: Turns, response: str, _row: Mapping[str, object]) -> float:
    """A reward that any two answers differ in: the share of letters."""
    return sum(letter.isalpha() for letter in response) / (len(response) or 1)


class TestBestOfN(MakingContract):
    name = "best_of_n"
    quick: ClassVar = QUICK
    logged = frozenset({"reward", "kept_reward", "best_of_1", "best_of_2"})
    recorded = frozenset({"sample"})
    columns = frozenset({"reward"})


class TestRejectionSampling(MakingContract):
    name = "rejection_sampling"
    quick: ClassVar = {**QUICK, "threshold": 0.1}
    logged = frozenset({"reward", "kept_reward"})
    recorded = frozenset({"sample"})
    columns = frozenset({"reward"})


class TestGeneratePreferences(MakingContract):
    name = "generate_preferences"
    quick: ClassVar = QUICK
    logged = frozenset({"reward", "kept_reward"})
    recorded = frozenset({"sample"})
    columns = frozenset({"chosen_reward", "rejected_reward"})


def prompts(count: int = 6) -> Any:
    import datasets

    return datasets.Dataset.from_list([{"prompt": [turn("user", f"say {WORDS[n % 10]} {n}")]} for n in range(count)])


def run(method: str, folder: Path, scratch: Path, dataset: Any = None, **settings: object) -> Made:
    found: type[Method[Params]] = find_method(method)
    given = {"max_new_tokens": 6, "unfinished": "keep", "n": 4, "reward": REWARD, **settings}
    inputs = Inputs({"policy": folder}, lambda _role, path: load_model(path), dataset or prompts())
    made = found().run(inputs, found.params.model_validate(given), make_context(scratch, Log()))
    assert isinstance(made, Made)
    return made


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_expected_best_of_k_is_the_mean_over_all_choices_of_k(n: int) -> None:
    generator = random.Random(n)
    rewards = [generator.choice([-2.5, 0.0, 1.0, 7.25]) for _ in range(n)]
    by_hand = [fmean(map(max, itertools.combinations(rewards, k))) for k in range(1, n + 1)]
    assert expected_best(rewards) == pytest.approx(by_hand)


def test_the_expected_best_of_many_is_no_sum_of_vast_numbers() -> None:
    found = expected_best([float(n) for n in range(256)])
    assert found[0] == pytest.approx(127.5)
    assert found[-1] == 255
    assert found == sorted(found)


def test_the_best_of_n_is_kept_and_its_gain_is_told(tiny_model: Path, tmp_path: Path) -> None:
    made = run("best_of_n", tiny_model, tmp_path)
    assert len(made.rows) == 6
    assert made.metrics["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)
    by_prompt = [[r.score for r in made.records if r.row == n] for n in range(6)]
    assert all(len(scores) == 4 for scores in by_prompt)
    expected = [fmean(column) for column in zip(*(expected_best(scores) for scores in by_prompt), strict=True)]
    assert [made.metrics[f"best_of_{k}"] for k in range(1, 5)] == pytest.approx(expected)
    assert made.metrics["best_of_1"] == pytest.approx(made.metrics["reward"])
    assert made.metrics["best_of_4"] == pytest.approx(made.metrics["kept_reward"])
    assert made.metrics["best_of_4"] > made.metrics["reward"]
    for number, row in enumerate(made.rows):
        (kept,) = [r for r in made.records if r.row == number and r.kept]
        assert row["completion"] == [turn("assistant", kept.text)]
        assert row["reward"] == kept.score == max(by_prompt[number])
        assert kept.by == REWARD


def test_figures_over_several_batches_are_those_of_all_samples(tiny_model: Path, tmp_path: Path) -> None:
    made = run("best_of_n", tiny_model, tmp_path, batch_size=8)
    by_prompt = [[r.score for r in made.records if r.row == n] for n in range(6)]
    expected = [fmean(column) for column in zip(*(expected_best(scores) for scores in by_prompt), strict=True)]
    assert [made.metrics[f"best_of_{k}"] for k in range(1, 5)] == pytest.approx(expected)
    assert [row["prompt"] for row in made.rows] == [
        row["prompt"] for row in run("best_of_n", tiny_model, tmp_path).rows
    ]


def test_rejection_sampling_keeps_distinct_answers_above_the_threshold(tiny_model: Path, tmp_path: Path) -> None:
    made = run("rejection_sampling", tiny_model, tmp_path, threshold=0.6, keep=2, n=6)
    scores = {n: sorted((r.score or 0.0 for r in made.records if r.row == n), reverse=True) for n in range(6)}
    kept = {n: [r.score for r in made.records if r.row == n and r.kept] for n in range(6)}
    assert sum(map(len, kept.values())) == len(made.rows) == made.metrics["rows"]
    for number in range(6):
        assert sorted(kept[number], reverse=True) == [s for s in scores[number] if s >= 0.6][:2]
    assert made.metrics["rejected"] == sum(s < 0.6 for own in scores.values() for s in own)
    assert made.metrics["prompts_solved"] == sum(bool(own) for own in kept.values())


def test_answers_equal_to_one_another_are_kept_once_and_make_no_pair(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, ["one", "one", "two", "one"] * 6)
    made = run("rejection_sampling", tiny_model, tmp_path, threshold=0.0)
    assert [row["completion"][0]["content"] for row in made.rows] == ["one", "two"] * 6  # type: ignore[index]  # turns
    assert made.metrics["equal"] == 12
    assert sum(bool(r.kept) for r in made.records) == 12
    scripted(monkeypatch, ["one"] * 24)
    with pytest.raises(UserError, match=r"made no row of 6 prompts \(.*equal 18.*prompts_alone 6.*; lower margin"):
        run("generate_preferences", tiny_model, tmp_path)
    # Another text with the same reward is a tie.
    scripted(monkeypatch, ["one", "two", "", "a <|im_end|> b"] * 6)
    with pytest.raises(UserError, match=r"\(empty 6, unfinished 0, special 6, equal 0, ties 6, within_margin 0, prom"):
        run("generate_preferences", tiny_model, tmp_path)


def test_pairs_are_best_and_worst_or_all_beyond_the_margin(tiny_model: Path, tmp_path: Path) -> None:
    for pairs, margin in (("best_worst", 0.0), ("all", 0.0), ("all", 0.2)):
        made = run("generate_preferences", tiny_model, tmp_path, pairs=pairs, margin=margin)
        expected, ties, within = 0, 0, 0
        for number in range(6):
            scores = sorted((r.score or 0.0 for r in made.records if r.row == number), reverse=True)
            wanted = [(scores[0], scores[-1])] if pairs == "best_worst" else itertools.combinations(scores, 2)
            for better, worse in wanted:
                ties += better == worse
                within += 0 < better - worse <= margin
                expected += better - worse > margin
        assert (len(made.rows), made.metrics["ties"], made.metrics["within_margin"]) == (expected, ties, within)
        for row in made.rows:
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]  # type: ignore[index]  # turns
            assert letters([], chosen, {}) == row["chosen_reward"]
            assert letters([], rejected, {}) == row["rejected_reward"]
            assert row["chosen_reward"] - row["rejected_reward"] > margin  # type: ignore[operator]  # numbers


def test_what_the_length_limit_cut_is_left_out_unless_it_is_wanted(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best_of_n made no row.*unfinished \d+.*; raise max_new_tokens"):
        run("best_of_n", tiny_model, tmp_path, unfinished="leave_out", max_new_tokens=2)


def test_the_reward_decides_which_models_are_needed_and_what_is_read() -> None:
    method = find_method("generate_preferences")
    assert method.needs_with({"reward": "model"}) == {"policy", "reward"}
    assert method.needs_with({"reward": "judge", "judge": "self"}) == {"policy", "judge"}
    assert method.needs_with({"reward": "constraints"}) == {"policy"}
    assert method.reads({"reward": "constraints"}) == {"reward": "constraints@1"}
    with pytest.raises(UserError, match="cannot load the verifier"):
        method.reads({"reward": "nowhere:at_all"})
