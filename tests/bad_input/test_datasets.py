"""Mirror folders that are broken or lead elsewhere: refused by `plan` with the file, the line or the row."""

import json
from pathlib import Path

import pytest

from tests.bad_input.conftest import Refused, suite_text

GOOD = json.dumps({"instruction": "Say hello", "output": "Hello"}) + "\n"
CARD = "---\nconfigs:\n  - config_name: default\n    data_files:\n      - split: train\n        path: {}\n---\n"


def _row(**columns: object) -> dict[str, str | bytes]:
    return {"train.jsonl": json.dumps(columns) + "\n"}


BROKEN: dict[str, tuple[dict[str, str | bytes], str]] = {
    "no files": ({}, "doesn't contain any data files"),
    "only a card": ({"README.md": "words"}, "doesn't contain any data files"),
    "another split": ({"test.jsonl": GOOD}, "Unknown split \"train\". Should be one of ['test']"),
    "empty file": ({"train.jsonl": ""}, "train.jsonl: the file is empty"),
    "broken line": ({"train.jsonl": GOOD * 2 + '{"instruction": "b\n' + GOOD}, "train.jsonl:3: not JSON"),
    "cut off line": ({"train.jsonl": GOOD + GOOD[:20]}, "train.jsonl:2: not JSON"),
    "line of numbers": ({"train.jsonl": "1\n2\n"}, "train.jsonl:1: expected a JSON object, got 1"),
    "line of a list": ({"train.jsonl": "[1]\n"}, "its columns text do not make instructions"),
    "broken JSON": ({"train.json": '[{"instruction": "b"},'}, "train.json:1:23: not JSON"),
    "not UTF-8": ({"train.jsonl": GOOD.encode() + b'{"instruction": "caf\xe9"}\n'}, "train.jsonl:2: byte 0xe9 is not"),
    "not UTF-8 in CSV": ({"train.csv": b"instruction,output\n\xff,b\n"}, "train.csv:2: byte 0xff is not UTF-8"),
    "no Parquet": ({"train.parquet": "a web page, say"}, "train.parquet: not a Parquet file"),
    "Parquet cut off": ({"train.parquet": b"PAR1" + b"\0" * 50}, "train.parquet: cut off"),
    "pickled rows": ({"train.pkl": b"\x80\x04K\x01."}, "No (supported) data files found"),
    "code": ({"set.py": "raise SystemExit('it ran')", "train.jsonl": GOOD}, "set.py: datasets with code of their own"),
    "card no YAML": (
        {"README.md": "---\nconfigs: [{\n---\n", "train.jsonl": GOOD},
        "its front matter is not",
    ),
    "card of a number": ({"README.md": "---\nconfigs: 3\n---\n", "train.jsonl": GOOD}, "Expected configs to be a list"),
    "card names nothing": ({"README.md": CARD.format("no.jsonl"), "train.jsonl": GOOD}, "no.jsonl"),
    "card leaves": (
        {"README.md": CARD.format("../../../out.jsonl"), "train.jsonl": GOOD},
        "data outside of its folder",
    ),
    "card is absolute": ({"README.md": CARD.format("/etc/passwd"), "train.jsonl": GOOD}, "data outside of its folder"),
    "card of the network": ({"README.md": CARD.format("http://127.0.0.1:9/a.jsonl")}, "data outside of its folder"),
    "card escapes": ({"README.md": CARD.format('"\\x2e\\x2e/out.jsonl"')}, "data outside of its folder"),
    "another card": ({".huggingface.yaml": "configs: []", "train.jsonl": GOOD}, ".huggingface.yaml: not supported"),
    "wrong columns": (_row(question="a", answer="b"), "columns question, answer do not make instructions"),
    "no answers": (_row(instruction="a"), "do not make instructions"),
    "a number": (_row(instruction=3, output="b"), "row 1: instruction is a number; expected a text"),
    "a hole": ({"train.jsonl": GOOD + '{"instruction": null, "output": "b"}\n'}, "row 2: instruction is nothing"),
    "turns of texts": (_row(messages=["a", "b"]), "row 1: messages has a turn that is not"),
    "turns without a role": (_row(messages=[{"content": "a"}, {"content": "b"}]), "row 1: messages has a turn"),
    "one turn": (_row(messages=[{"role": "user", "content": "a"}]), "row 1: messages has one turn"),
    "no turns": (_row(prompt=[], completion=[]), "row 1: prompt is an empty list"),
    "turns of one text": (_row(messages="Hello"), "row 1: messages is a text; expected turns"),
}


def _mirror(folder: Path, files: dict[str, str | bytes]) -> Path:
    place = folder / "mirror" / "org" / "set"
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "out.jsonl").write_text(GOOD)
    return folder / "mirror"


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_dataset_is_refused(refused: Refused, tiny_model: Path, tmp_path: Path, case: str) -> None:
    files, expected = BROKEN[case]
    mirror = _mirror(tmp_path, files)
    recipes = "{a: [{sft: {dataset: org/set}}]}"
    said = refused(suite_text(recipes=recipes, data=str(mirror), measure="{profile: {}}", models=f"[{tiny_model}]"))
    assert expected in said
    assert "org/set" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("org/set:other", "BuilderConfig 'other' not found"),
        ("org/set:default:dev", 'Unknown split "dev"'),
        ("org/..", "expected <org>/<dataset>"),
        ("../set", "expected <org>/<dataset>"),
        ("org/se t", "expected <org>/<dataset>"),
        ("'org/set?token=x'", "expected <org>/<dataset>"),
    ],
)
def test_names_that_are_none(refused: Refused, tiny_model: Path, tmp_path: Path, dataset: str, expected: str) -> None:
    mirror = _mirror(tmp_path, {"train.jsonl": GOOD})
    recipes = f"{{a: [{{sft: {{dataset: {dataset}}}}}]}}"
    changes = {"recipes": recipes, "data": str(mirror), "measure": "{profile: {}}", "models": f"[{tiny_model}]"}
    assert expected in refused(suite_text(**changes))


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ("not JSON", "row 2"),
        ("[]", "expected a non-empty JSON list"),
        ('[{"kind": "rhyme"}]', "expected kinds of"),
    ],
)
def test_constraints_that_cannot_be_checked(
    refused: Refused, tiny_model: Path, tmp_path: Path, constraints: str, expected: str
) -> None:
    good = {"prompt": "Say hello", "constraints": '[{"kind": "formal"}]'}
    rows = [good, {**good, "constraints": constraints}]
    mirror = _mirror(tmp_path, {"train.jsonl": "".join(json.dumps(r) + "\n" for r in rows)})
    said = refused(suite_text(data=str(mirror), measure="{gold: {dataset: org/set}}", models=f"[{tiny_model}]"))
    assert expected in said
    assert "row 2" in said


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('{"question": "a"}\n', "'answer' is undefined; the task reads a column that they lack"),
        ("", "test.jsonl: the file is empty"),
        ('{"question": "a", "answer"\n', "test.jsonl:1: not JSON"),
    ],
)
def test_benchmarks_with_other_documents(
    refused: Refused, tiny_model: Path, tmp_path: Path, rows: str, expected: str
) -> None:
    place = tmp_path / "mirror" / "openai" / "gsm8k"
    (place / "main").mkdir(parents=True)
    lines = [f"      - split: {split}\n        path: main/{split}.jsonl\n" for split in ("train", "test")]
    (place / "README.md").write_text(f"---\nconfigs:\n  - config_name: main\n    data_files:\n{''.join(lines)}---\n")
    for split in ("train", "test"):
        (place / "main" / f"{split}.jsonl").write_text(rows)
    measure = "{tasks: {gsm8k: {num_fewshot: 0}}}"
    said = refused(suite_text(data=str(tmp_path / "mirror"), measure=measure, models=f"[{tiny_model}]"))
    assert expected.replace("test.", "train.") in said or expected in said
    assert "gsm8k" in said
