"""Critique and revision: who is asked what, and which of it becomes data."""

from pathlib import Path
from typing import ClassVar

import pytest

from harness.errors import UserError
from harness.method import Inputs, Made
from harness.models import load_model
from methods._constitution import read_constitution
from methods._critique import Critic, request, without_labels
from methods._making import Text
from methods.critique_revision import CritiqueRevision, CritiqueRevisionParams
from tests.methods.helpers import Log, make_context, turn
from tests.methods.making_contract import MakingContract, scripted, with_room

QUICK = {**MakingContract.quick, "max_critique_tokens": 5, "critique_temperature": 1.0, "examples": 1}


class TestCritiqueRevision(MakingContract):
    name = "critique_revision"
    quick: ClassVar = QUICK
    logged = frozenset({"revisions"})
    recorded = frozenset({"answer", "critique", "revision"})
    columns = frozenset({"answer_before", "principle"})


@pytest.fixture(scope="module")
def roomy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for the examples."""
    return with_room(tiny_model, tmp_path_factory.mktemp("models") / "roomy")


def run(folder: Path, scratch: Path, **settings: object) -> Made:
    import datasets

    rows = [{"prompt": [turn("user", f"say {n}")], "source": n} for n in range(6)]
    inputs = Inputs({"policy": folder}, lambda _role, path: load_model(path), datasets.Dataset.from_list(rows))
    params = CritiqueRevisionParams.model_validate({**QUICK, **settings})
    return CritiqueRevision().run(inputs, params, make_context(scratch, Log()))


def test_every_round_is_recorded_and_the_last_revision_is_the_completion(roomy: Path, tmp_path: Path) -> None:
    made = run(roomy, tmp_path, rounds=3)
    requests = {p.critique for p in read_constitution("default").principles}
    kept = {}
    for number in range(6):
        said = [r for r in made.records if r.row == number]
        assert [r.turn for r in said] == list(range(len(said)))
        assert said[0].kind == "answer"
        asked = [r.principle for r in said if r.kind == "critique"]
        assert set(asked) <= requests
        assert len(set(asked)) == len(asked)
        assert all(r.kept is None for r in said if r.kind != "revision")
        revisions = [r for r in said if r.kind == "revision"]
        if any(r.kept for r in revisions):
            (kept[number],) = [r.text for r in revisions if r.kept]
            # What follows it could not be used.
            usable = [r.text for r in revisions if r.text]
            assert kept[number] in usable[-1:] or made.metrics["rounds_lost"] > 0
    assert len({r.principle for r in made.records if r.kind == "critique"}) > 3
    assert [row["completion"] for row in made.rows] == [[turn("assistant", text)] for text in kept.values()]
    assert [row["source"] for row in made.rows] == [_source(made, number) for number in kept]
    revised = sum(r.kind == "revision" for r in made.records)
    assert made.metrics["revisions"] <= revised
    assert (
        made.metrics["revisions"] + made.metrics["rounds_lost"]
        == 3 * sum(bool(r.text) for r in made.records if r.kind == "answer") - 3 * made.metrics["special"]
    )


def _source(made: Made, number: int) -> int:
    (prompt,) = {r.prompt for r in made.records if r.row == number}
    return int(prompt.split()[-1])


def test_all_revisions_may_be_kept(roomy: Path, tmp_path: Path) -> None:
    last, every = run(roomy, tmp_path, rounds=3), run(roomy, tmp_path, rounds=3, revisions="all")
    assert len(every.rows) > len(last.rows)
    assert [r.text for r in every.records] == [r.text for r in last.records]
    texts = [(str(row["prompt"]), str(row["completion"])) for row in every.rows]
    assert len(set(texts)) == len(texts)
    assert {str(row["completion"]) for row in last.rows} <= {text for _, text in texts}


def test_each_is_asked_about_the_newest_text_and_what_is_no_text_is_passed_over(
    roomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(
        monkeypatch,
        ["first 0", "", "first 2", "first 3", "first 4", "first 5"],
        # Five are criticised; one criticism is empty, one would end its turn.
        ["bad 0", "", "bad 3", "bad <|im_end|> 4", "bad 5"],
        ["second 0", "first 3", ""],
        ["worse 0", "worse 2", "worse 3", "worse 4", "worse 5"],
        ["Answer: third 0\n\nCriticism: none", "second 2", "first 3", "second 4", "second 5"],
    )
    made = run(roomy, tmp_path, rounds=2, examples=0)
    assert made.rows
    # The second criticism is of the revision where there is one, else of the answer.
    assert ["second 0" in a and "first 0" not in a for a in asked[3][:1]] == [True]
    assert "first 2" in asked[3][1]
    assert "bad 0" in asked[2][0]
    assert "second 0" in asked[4][0]
    assert "worse 0" in asked[4][0]
    assert all(a.rstrip().endswith("assistant") for a in asked[2] + asked[4])
    completions = {str(r["answer_before"]): r["completion"][0]["content"] for r in made.rows}  # type: ignore[index]  # turns
    assert completions == {
        "first 0": "third 0",
        "first 2": "second 2",
        "first 4": "second 4",
        "first 5": "second 5",
    }
    assert made.metrics["unchanged"] == 1
    assert made.metrics["empty"] == 1
    assert made.metrics["rounds_lost"] == 3
    assert made.metrics["revisions"] == 7


def test_nothing_but_unchanged_answers_is_no_dataset(
    roomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, ["same"] * 6, ["bad"] * 6, ["same"] * 6)
    with pytest.raises(UserError, match=r"critique_revision made no row of 6 prompts \(.*unchanged 6.*; raise"):
        run(roomy, tmp_path)


def test_a_dialogue_that_the_model_cannot_hold_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    # 512 positions hold no examples in this vocabulary.
    with pytest.raises(UserError, match=r"too_long 6"):
        run(tiny_model, tmp_path, examples=3)


def test_a_reply_follows_the_request_and_the_examples_come_first() -> None:
    constitution = read_constitution("default")
    critic, principle = Critic(constitution.examples), constitution.principles[0]
    asked = critic.revision("my question", "my answer", "my criticism", principle)
    assert [t["role"] for t in asked] == ["user", "assistant"] * 3 + ["user"]
    assert asked[1]["content"] == constitution.examples[0].revision
    last = asked[-1]["content"]
    assert last.endswith("Request: my question")
    assert all(text in last for text in ("my answer", "my criticism", principle.revision))
    assert principle.critique in critic.critique("q", "a", principle)[-1]["content"]


@pytest.mark.parametrize(
    ("written", "left", "ended"),
    [
        ("A new answer.", "A new answer.", False),
        ("Revision: A new answer.", "A new answer.", False),
        ("A new answer.\n\nCriticism: It is", "A new answer.", True),
        ("One.\n\nTwo: three.\nFour", "One.\n\nTwo: three.\nFour", False),
        ("Criticism:", "", False),
    ],
)
def test_what_stands_under_the_next_label_is_no_part_of_a_text(written: str, left: str, ended: bool) -> None:
    found = without_labels(Text(written, [5], ended=False, plain=True))
    assert (found.text, found.ended) == (left, ended)


def test_a_critic_sees_labels_only_where_somebody_has_answered() -> None:
    system, asked = turn("system", "Be brief."), turn("user", "What is rain?")
    assert request([asked]) == "What is rain?"
    assert request([system, asked]) == "Be brief.\n\nWhat is rain?"
    assert request([asked, turn("assistant", "Water."), asked]).startswith("User: What is rain?\n\nAssistant: Water.")
