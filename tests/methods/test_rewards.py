"""What a response is worth: verifiers on what models write, one interface, and what is refused of a user's function."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import InfeasibleError, UserError
from harness.method import Inputs
from harness.models import load_model, save_model
from methods._rewards import RewardParams, make_rewarder, reward_needs, reward_reads
from methods._verifiers import constraints, final_answer, number_in
from tests.methods.helpers import Log, make_context, turn

PROMPT = [turn("user", "how many?")]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of a user's, found as the command finds it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "def length(prompt, response, row):\n    return float(len(response))\n\n\n"
        "def wrong(prompt, response, row):\n    return row['gone']\n\n\n"
        "def endless(prompt, response, row):\n    return float('inf')\n\n\n"
        "def silent(prompt, response, row):\n    return None\n\n\n"
        "number = 3\nlength.version = 2\n"
    )
    yield path
    sys.modules.pop("my_rewards", None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 apples.", "7"),
        ("#### 1,234", "1234"),
        ("The answer is 1,000,000 and not 12,34", "34"),
        (r"Half of 9: \boxed{\frac{9}{2}} in 3 steps", "4.5"),
        (r"so \boxed{4.50} of 10", "4.5"),
        ("it is -3", "-3"),
        ("from 5-3", "3"),
        ("3/4", "0.75"),
        ("#### 5\nchecked 12 times", "5"),
        (r"\boxed{\text{about } 8} or 9", "8"),
        ("about 1/0", None),
        ("none", None),
        ("9" * 5000, None),
    ],
)
def test_the_final_number_of_a_text(text: str, number: str | None) -> None:
    from fractions import Fraction

    assert number_in(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize("answer", ["He pays 6 * 7 = 42.\n#### 42", "42", 42, 42.0, r"\boxed{42}"])
def test_a_final_answer_is_right_however_it_is_written(answer: object) -> None:
    row = {"answer": answer}
    assert final_answer(PROMPT, "That makes 42.0 dollars.", row) == 1.0
    assert final_answer(PROMPT, "It is 42, no, 41.", row) == 0.0
    assert final_answer(PROMPT, "I do not know.", row) == 0.0


@pytest.mark.parametrize("row", [{}, {"answer": "many"}, {"answer": None}, {"answer": True}])
def test_a_row_without_an_answer_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="column answer holds no number"):
        final_answer(PROMPT, "42", row)


def test_constraints_are_those_of_the_row() -> None:
    row = {"constraints": '[{"kind": "no_comma"}, {"kind": "include", "value": "apple"}]'}
    assert constraints(PROMPT, "one apple for me", row) == 1.0
    assert constraints(PROMPT, "one pear for me", row) == 0.5
    with pytest.raises(ValueError, match="no column constraints"):
        constraints(PROMPT, "one apple for me", {})


def test_which_model_scores_is_a_matter_of_the_settings() -> None:
    assert reward_needs({}) == {"reward"}
    assert reward_needs({"reward": "judge", "judge": "self"}) == {"judge"}
    assert reward_needs({"reward": "constraints"}) == frozenset()
    assert reward_reads({}) == {}
    assert reward_reads({"reward": "constraints"}) == {"reward": "constraints@1"}


def test_a_function_is_known_by_its_version_or_by_its_file(module: Path) -> None:
    assert reward_reads({"reward": "my_rewards:length"}) == {"reward": "my_rewards:length@2"}
    before = reward_reads({"reward": "my_rewards:wrong"})
    sys.modules.pop("my_rewards")
    module.write_text(module.read_text().replace("gone", "away, further than before"))
    after = reward_reads({"reward": "my_rewards:wrong"})
    assert before != after
    assert after == reward_reads({"reward": "my_rewards:wrong"})


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("nowhere_at_all:score", "cannot load the verifier 'nowhere_at_all:score'"),
        ("my_rewards:gone", "no attribute 'gone'"),
        ("my_rewards:number", "is int; expected a function"),
        ("builtins:max", "has no version and no source file"),
        ("verifier", "is not known; expected model"),
        ({"values": ["model", "judge"]}, "cannot be searched"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_runs(module: Path, reward: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        reward_reads({"reward": reward})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward": "judge"}, "needs a judge"),
        ({"judge": "self"}, "judge is not asked with reward model"),
        ({"reward": "constraint"}, "is not known; expected model"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RewardParams.model_validate(settings)


class Taste:
    """A judge that likes long answers, and knows no equals."""

    name = "taste"

    def rate(self, asked: Any) -> list[float]:
        return [min(10.0, 1.0 + len(response)) for _, response in asked]

    def prefer(self, asked: Any, principles: Any = None) -> list[float]:
        return [0.9 if one >= other else 0.1 for _, one, other in asked]


@pytest.fixture
def rewarder(tiny_model: Path, tmp_path: Path) -> Any:
    def make(reward_folder: Path | None = None, precision: Any = "float32", **settings: str) -> Any:
        folders = {"policy": tiny_model} | ({"reward": reward_folder} if reward_folder else {})
        inputs = Inputs(
            folders=folders,
            loader=lambda role, path: load_model(path, head="reward" if role == "reward" else "causal"),
            judging=Taste,
        )
        return make_rewarder(
            inputs, RewardParams.model_validate(settings), make_context(tmp_path, Log(), precision=precision)
        )

    return make


def test_tokens_and_texts_are_scored_alike(rewarder: Any, module: Path, tiny_model: Path) -> None:
    found = rewarder(reward="my_rewards:length")
    tokenizer: Any = load_model(tiny_model).tokenizer
    ids = [*tokenizer(" seven words", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    rows = [{"prompt": PROMPT}] * 2
    assert found.score(rows, ["seven words", ids]) == [11.0, 11.0]
    assert found.name == "my_rewards:length"
    assert found.prefer([{"prompt": PROMPT}] * 3, ["a", "aa", "a"], ["aa", "a", "b"]) == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("wrong", "KeyError: 'gone'"),
        ("endless", "gave inf; expected a finite number"),
        ("silent", "gave None; expected a number"),
    ],
)
def test_a_failing_verifier_names_the_row(rewarder: Any, module: Path, function: str, said: str) -> None:
    found = rewarder(reward=f"my_rewards:{function}")
    with pytest.raises(UserError, match=rf"my_rewards:{function}.*prompt 'how many\?'.*{said}"):
        found.score([{"prompt": PROMPT}], ["four"])


def test_a_judge_rates_and_prefers(rewarder: Any) -> None:
    found = rewarder(reward="judge", judge="self")
    assert found.name == "taste"
    assert found.score([{"prompt": PROMPT}] * 2, ["", "abc"]) == [1.0, 4.0]
    assert found.prefer([{"prompt": PROMPT}], ["b"], ["a"]) == [0.9]


@pytest.fixture(scope="module")
def reward_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reward model."""
    from transformers import LlamaForSequenceClassification

    base = load_model(tiny_model)
    config = base.model.config.__class__(**{**base.model.config.to_dict(), "num_labels": 1})
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "reward"
    save_model(LlamaForSequenceClassification(config), base.tokenizer, folder)
    return folder


def test_a_reward_model_reads_the_chat_as_its_template_closes_it(rewarder: Any, reward_folder: Path) -> None:
    found = rewarder(reward_folder)
    reward = load_model(reward_folder, head="reward")
    tokenizer: Any = reward.tokenizer
    rows = [{"prompt": [turn("user", f"count {n}")]} for n in range(40)]
    texts = [f"one {'two ' * (n % 5)}three" for n in range(40)]
    expected = []
    for row, text in zip(rows, texts, strict=True):
        whole = tokenizer.apply_chat_template([*row["prompt"], turn("assistant", text)], tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(float(reward.model(ids).logits[0, 0]))
    scores = found.score(rows, texts)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) > 30
    cut = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert found.score(rows, cut) == scores
    assert found.score(rows, [[*ids, tokenizer.eos_token_id] for ids in cut]) == scores
    assert reward.model.config._attn_implementation == "sdpa"


def test_a_reward_model_that_gives_no_number_ends_the_stage(rewarder: Any, reward_folder: Path) -> None:
    found = rewarder(reward_folder)
    with torch.no_grad():
        found.scorer.head.weight.fill_(math.nan)
    with pytest.raises(InfeasibleError, match="not finite"):
        found.score([{"prompt": PROMPT}], ["four"])


def test_a_reward_model_of_another_vocabulary_is_refused(rewarder: Any, reward_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(reward_folder, head="reward")
    other: Any = loaded.tokenizer
    other.add_tokens(["unheard-of"])
    save_model(loaded.model, other, tmp_path / "other")
    with pytest.raises(UserError, match="another tokenizer"):
        rewarder(tmp_path / "other")
