"""Data sources and training sets."""

import json
from pathlib import Path

import pytest

from harness.data import DataSource, dataset_problem, half_of, load_training_set
from harness.errors import UserError


def _mirror(folder: Path, rows: str) -> DataSource:
    place = folder / "org" / "set"
    place.mkdir(parents=True, exist_ok=True)
    (place / "README.md").write_text(
        "---\nconfigs:\n  - config_name: default\n    data_files:\n"
        "      - split: train\n        path: train.jsonl\n---\n"
    )
    (place / "train.jsonl").write_text(rows)
    return DataSource(str(folder))


def test_halves_are_stable_and_balanced() -> None:
    halves = [half_of(f"document {i}") for i in range(2000)]
    assert 900 < halves.count("tune") < 1100
    assert [half_of("a"), half_of("b"), half_of("document 7")] == ["tune", "tune", halves[7]]


def test_bundled_training_sets_come_from_the_bundle_whatever_the_source(tmp_path: Path) -> None:
    _, ours = load_training_set("preferences", "preferences", DataSource("bundled"))
    _, same = load_training_set("preferences", "preferences", DataSource(str(tmp_path)))
    assert ours == same


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (
            "instructions",
            {"instruction": "Add", "input": "1 and 2", "output": "3"},
            {
                "prompt": [{"role": "user", "content": "Add\n\n1 and 2"}],
                "completion": [{"role": "assistant", "content": "3"}],
            },
        ),
        (
            "preferences",
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
            {
                "prompt": [{"role": "user", "content": "Hi"}],
                "chosen": [{"role": "assistant", "content": "Hello"}],
                "rejected": [{"role": "assistant", "content": "No"}],
            },
        ),
        ("prompts", {"prompt": "Why?"}, {"prompt": [{"role": "user", "content": "Why?"}]}),
        (
            "prompts",
            {"question": "2 + 2?", "answer": "#### 4", "hints": {"steps": [1, None]}},
            {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "#### 4", "hints": {"steps": [1, None]}},
        ),
        (
            "prompts",
            {"instruction": "Add 2 and 2", "question": "not this", "answer": 4},
            {"prompt": [{"role": "user", "content": "Add 2 and 2"}], "answer": 4},
        ),
        ("text", {"text": "words"}, {"text": "words"}),
    ],
)
def test_common_columns_become_conversations(tmp_path: Path, kind: str, row: dict[str, str], expected: object) -> None:
    rows, fingerprint = load_training_set("org/set", kind, _mirror(tmp_path, json.dumps(row) + "\n"))  # type: ignore[arg-type]
    assert rows[0] == expected
    assert len(fingerprint) == 32


def test_a_changed_answer_is_another_set_of_prompts(tmp_path: Path) -> None:
    """What a verifier compares with decides what a policy learns."""
    found = {}
    for answer in ("#### 4", "#### 5"):
        source = _mirror(tmp_path, json.dumps({"question": "2 + 2?", "answer": answer}) + "\n")
        found[answer] = load_training_set("org/set", "prompts", source)[1]
    assert found["#### 4"] != found["#### 5"]


def test_gsm8k_makes_prompts_with_answers() -> None:
    rows, _ = load_training_set("openai/gsm8k:main:train", "prompts", DataSource("bundled"))
    assert rows[0]["prompt"][0]["content"].endswith("?")
    assert all("#### " in row["answer"] for row in rows)


def test_what_json_cannot_hold_is_left_out_of_prompts() -> None:
    import datetime

    import datasets

    from harness._rows import rows_of_kind

    row = {"prompt": "Why?", "seen": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), "answer": "1"}
    assert rows_of_kind(datasets.Dataset.from_list([row]), "prompts", "org/set").column_names == ["answer", "prompt"]


def test_an_edited_row_is_seen(tmp_path: Path) -> None:
    """`datasets` alone would answer from its cache with the row that is no longer there."""
    source = _mirror(tmp_path, '{"text": "before"}\n')
    first = load_training_set("org/set", "text", source)
    _mirror(tmp_path, '{"text": "afterwards"}\n')
    second = load_training_set("org/set", "text", source)
    assert (first[0][0]["text"], second[0][0]["text"]) == ("before", "afterwards")
    assert first[1] != second[1]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    source = _mirror(tmp_path, '{"question": "no kind has this column"}\n')
    assert "no folder org/other" in str(dataset_problem("org/other", source))
    assert "instructions, preferences, prompts" in str(dataset_problem("nothing", source))
    with pytest.raises(UserError, match="columns"):
        load_training_set("org/set", "preferences", source)
    assert "no such folder" in str(DataSource(str(tmp_path / "none")).problem())


def test_the_official_sets_load(shared_data: Path) -> None:
    source = DataSource(str(shared_data))
    pairs, _ = load_training_set("Anthropic/hh-rlhf:harmless-base:test", "preferences", source)
    assert pairs[0]["prompt"][0]["role"] == "user"
    assert pairs[0]["chosen"] != pairs[0]["rejected"]
    ultra, _ = load_training_set("trl-lib/ultrafeedback_binarized", "preferences", source)
    assert ultra[0]["chosen"][0]["role"] == "assistant"
    dolly, _ = load_training_set("databricks/databricks-dolly-15k", "instructions", source)
    assert dolly[0]["completion"][0]["content"]
