"""Constitutions: the default one, a user's own, a published one; what is refused, and where."""

import json
from pathlib import Path

import pytest

from harness.errors import UserError
from methods._constitution import Principle, constitution_reads, read_constitution

DATASET = "local/cai_constitution"


def _written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_the_default_one_is_whole() -> None:
    found = read_constitution("default")
    assert len(found.principles) == 12
    texts = [text for p in found.principles for text in (p.critique, p.revision, p.preference)]
    assert len(set(texts)) == 36
    assert len(found.examples) == 3


def test_a_principle_of_one_text_is_asked_about_in_fixed_words(tmp_path: Path) -> None:
    found = read_constitution(_written(tmp_path, "- principle: Use {plain} words.\n  preference: The plainer one.\n"))
    (principle,) = found.principles
    assert principle == Principle(
        critique="Say how the answer goes against this principle: Use {plain} words.",
        revision="Write the answer again so that it keeps to this principle: Use {plain} words.",
        preference="The plainer one.",
    )
    # Whoever brings no examples of their own is shown the default ones.
    assert found.examples == read_constitution("default").examples


def test_a_list_of_principles_may_have_examples_beside_it(tmp_path: Path) -> None:
    example = dict.fromkeys(("prompt", "answer", "critique_request", "critique", "revision_request", "revision"), "x")
    text = json.dumps({"principles": [{"critique": "a", "revision": "b"}], "examples": [example]})
    found = read_constitution(_written(tmp_path, text))
    assert found.principles[0].preference.endswith(": a")
    assert [e.prompt for e in found.examples] == ["x"]


def test_a_published_one_is_read_from_the_folder_of_its_dataset(shared_data: Path) -> None:
    found = read_constitution(str(shared_data / DATASET))
    assert len(found.principles) == 16
    assert found.principles[0].critique.startswith("Did the response include")
    assert found.principles[0].revision.startswith("Please rewrite")
    assert found.principles[0].preference.endswith(found.principles[0].critique)


def test_the_fingerprint_is_of_the_texts_and_follows_the_file(tmp_path: Path) -> None:
    name = _written(tmp_path, "- {critique: a, revision: b}\n")
    first = constitution_reads({"constitution": name})
    _written(tmp_path, "# a comment\nprinciples:\n  - revision: b\n    critique: 'a'\n")
    assert constitution_reads({"constitution": name}) == first
    _written(tmp_path, "- {critique: a, revision: another}\n")
    assert constitution_reads({"constitution": name}) != first
    assert constitution_reads({}) == constitution_reads({"constitution": "default"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- critique: a\n- principle: b\n", r"mine.yaml:1:3: 0: the key revision is required, or one text principle"),
        ("- principle: a\n  revison: b\n", r"mine.yaml:2:3: 0.revison: unknown key \(did you mean revision\?\)"),
        ("- principle: a\n- 5\n", r"mine.yaml:2:3: 1: expected a mapping with critique, revision and preference"),
        ("- principle: 7\n", r"mine.yaml:1:3: 0: principle: expected a text"),
        ("- {critique: '', revision: b}\n", r"mine.yaml:1:14: 0.critique: expected a text of 1 to 2000 characters"),
        (f"- {{critique: {'a' * 2001}, revision: b}}\n", r"0.critique: expected a text of 1 to 2000 characters"),
        ("principles: []\n", r"mine.yaml:1:13: principles: expected at least one, got none"),
        ("principle: a\n", r"mine.yaml:1:1: principle: unknown key \(did you mean principles\?\)"),
        ("just a text\n", r"mine.yaml:1:1: expected a list of principles, or a mapping"),
        ("", r"mine.yaml:1:1: expected a list of principles, or a mapping"),
        ("principles: [{principle: a}]\nexamples: [{prompt: a}]\n", r"mine.yaml:2:12: examples.0: the key answer is"),
        ("- principle: !!python/object:os.system x\n", r"mine.yaml:1:14: 0.principle: tags are not supported"),
        ("- {principle: a, principle: b}\n", r"mine.yaml:1:18: 0: duplicate key 'principle'"),
        ("- principle: [\n", r"mine.yaml:2:1: not valid YAML"),
        ("a: &a [*a]\n", r"mine.yaml:1:8: a\.0: \*a stands inside the value it names"),
    ],
)
def test_what_is_no_constitution_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_constitution(_written(tmp_path, text))


def test_what_is_not_there_is_refused() -> None:
    for name in ("nowhere.yaml", "local/cai_constitution_of_nobody", "a\0b"):
        with pytest.raises(UserError, match="no such file or folder; expected default, a YAML file"):
            read_constitution(name)


def test_a_dataset_without_principles_is_refused_with_its_row(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "texts"
    folder.mkdir(parents=True)
    rows = [{"critic": "a", "revision": "b"}, {"critic": "a", "revision": " "}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="row 2: expected a text of 1 to 2000 characters; expected columns critique"):
        read_constitution(str(folder))
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="row 1: the key critique is required"):
        read_constitution(str(folder))
