"""Truncated prompts: counted with the tokenizer and the window of an artifact."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.gates._truncated import _window
from harness.store import Store
from tests.gates.stores import Answer, Answers, answers, ask, change, texts

GATE = "truncated prompts"
WINDOW = 512


def _long(make: Answers, lengths: dict[int, int]) -> Answers:
    """The same answers; these documents' prompts have so many words "a", a token each."""

    def changed(recipe: str, seed: int) -> Iterator[Answer]:
        for i, (document, score, response, expected, prompt) in enumerate(make(recipe, seed)):
            yield document, score, response, expected, " ".join(["a"] * lengths[i]) if i in lengths else prompt

    return changed


@pytest.fixture
def results(healthy: Store, tiny_model: Path, tmp_path: Path) -> Path:
    """One artifact of dpo, without its weights."""
    artifact = healthy.query("SELECT artifact FROM trials WHERE recipe = 'dpo' AND phase = 'final' AND seed = 1").item()
    folder = tmp_path / "results" / "artifacts" / artifact
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "results"


def _tokens(tiny_model: Path, words: int) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(tiny_model)(" ".join(["a"] * words))["input_ids"])


def test_prompts_longer_than_the_window(healthy: Store, results: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert _tokens(tiny_model, WINDOW) == WINDOW
    # One prompt fills the window to the last token; the answer then takes its place, and nothing is cut.
    full = {20: WINDOW}
    store = change(
        healthy,
        tmp_path / "store",
        {
            "mmlu": ("acc", _long(answers(28), {0: 600, 1: 601, 2: 602} | full)),
            "hellaswag": ("acc_norm", _long(answers(28), {0: 600} | full)),
            "truthfulqa_mc2": ("acc", _long(answers(28), full)),
            "gsm8k": ("exact_match_flexible", _long(texts(28), {0: 500})),
        },
        {"gsm8k": {"max_gen_toks": 13}},
    )
    found, open_ = ask(store, GATE, results=results)
    assert open_ == []
    flags = {f.task: f for f in found}
    assert set(flags) == {"mmlu", "hellaswag", "gsm8k"}
    for task, count, severity in (("mmlu", 3, "invalid"), ("hellaswag", 1, "warning")):
        assert (flags[task].severity, flags[task].recipe, flags[task].seed) == (severity, "", None)
        assert dict(flags[task].figures) == {"cut": count, "n": 40, "longest": 599 + count, "room": WINDOW}
        assert f"At least {count} of 40 prompts" in flags[task].message
    # What is generated needs room beside the prompt: 500 and 13 tokens are one more than 512.
    assert (flags["gsm8k"].figures["cut"], flags["gsm8k"].figures["room"]) == (1, WINDOW - 13)
    assert "beside 13 generated" in flags["gsm8k"].message


def test_prompts_that_fit_are_no_flag(healthy: Store, results: Path) -> None:
    found, open_ = ask(healthy, GATE, results=results)
    assert found == []
    # The room for written answers is the task's own, which only the source says.
    assert [u.task for u in open_] == ["gsm8k"]
    assert "the tokens kept free for answers are the task's own" in open_[0].why


def test_without_files_it_says_so(healthy: Store, tmp_path: Path) -> None:
    for results, why in (
        (None, "no results folder was given"),
        (tmp_path, "no artifact of the model is there any more"),
    ):
        found, open_ = ask(healthy, GATE, "mmlu", results=results)
        assert found == []
        assert open_[0].why.startswith(why)


@pytest.mark.parametrize(
    ("config", "tokenizer", "window"),
    [
        ({"max_position_embeddings": 512, "n_ctx": 9}, {}, 512),
        ({"text_config": {"n_positions": 7}, "max_position_embeddings": 512}, {}, 7),
        ({}, {"model_max_length": 1024}, 1024),
        ({}, {"model_max_length": 10**30}, 2048),
    ],
)
def test_the_window_is_the_one_that_lm_eval_finds(
    tmp_path: Path, config: dict[str, object], tokenizer: dict[str, object], window: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert _window(tmp_path) == window
