"""Votes that are paid are kept: by content, over damage, kills and several processes; and what they cost is known."""

import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.errors import MeasurementError, StorageError
from harness.measure.judge._cache import CachedVoter, VoteCache, vote_key
from harness.measure.judge._types import Keep, Progress, Question, Verdict

JUDGE = "0123456789abcdef" * 2


def _question(text: str) -> Question:
    return Question("helpfulness", {"prompt": "Why?", "response": text})


class _Judge:
    """Rates an answer by its length; fails on the answer `fail`, says no verdict on `mute`."""

    name = "counting"

    def __init__(self, key: str = JUDGE) -> None:
        self.key = key
        self.asked: list[str] = []

    def vote(
        self, questions: Sequence[Question], keep: Keep | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        found = []
        for place, question in enumerate(questions):
            text = question.texts["response"]
            if text == "fail":
                raise MeasurementError("no answer")
            self.asked.append(text)
            rating = None if text == "mute" else str(len(text))
            score = None if rating is None else float(rating)
            found.append(Verdict(rating, score, f"rate {text}", words="Hm ✓", cost=0.25, tokens={"prompt": 3}))
            assert keep is not None
            keep(place, found[-1])
        return found


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    judge = _Judge()
    questions = [_question(t) for t in ("abc", "mute", "abc", "ab")]
    told: list[tuple[int, str | None]] = []
    seen: list[tuple[int, int]] = []
    first = CachedVoter(judge, VoteCache(tmp_path)).vote(
        questions, lambda place, v: told.append((place, v.verdict)), lambda *at: seen.append(at)
    )
    assert [v.verdict for v in first] == ["3", None, "3", "2"]
    assert judge.asked == ["abc", "mute", "ab"]
    assert sorted(told) == [(0, "3"), (1, None), (2, "3"), (3, "2")]
    assert seen == [(2, 4), (3, 4), (4, 4)]

    again = _Judge()
    told.clear()
    assert CachedVoter(again, VoteCache(tmp_path)).vote(questions, lambda p, v: told.append((p, v.verdict))) == first
    assert again.asked == []
    assert sorted(told) == [(0, "3"), (1, None), (2, "3"), (3, "2")]


def test_what_decides_a_vote_is_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    base = vote_key(JUDGE, _question("a"))
    assert base == vote_key(JUDGE, Question("helpfulness", {"response": "a", "prompt": "Why?"}))
    others = {
        vote_key("other", _question("a")),
        vote_key(JUDGE, _question("b")),
        vote_key(JUDGE, Question("harmlessness", {"prompt": "Why?", "response": "a"})),
        vote_key(JUDGE, Question("helpfulness", {"prompt": "Why?", "response": "a", "history": ""})),
    }
    monkeypatch.setattr("harness.measure.judge._cache.TEMPLATE_VERSION", 999)
    assert len({base, *others, vote_key(JUDGE, _question("a"))}) == 6


def test_an_error_is_not_kept_and_what_came_before_it_is(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError):
        CachedVoter(_Judge(), VoteCache(tmp_path)).vote([_question("a"), _question("fail"), _question("b")])
    again = _Judge()
    CachedVoter(again, VoteCache(tmp_path)).vote([_question("a"), _question("b")])
    assert again.asked == ["b"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "\xff", '{"key": "x"}', "other score", "other vote", "no digest"])
def test_a_damaged_vote_is_set_aside_and_asked_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    CachedVoter(_Judge(), VoteCache(tmp_path)).vote([_question("abc")])
    (file,) = tmp_path.glob("*/*/*.json")
    content = json.loads(file.read_text())
    if damage == "other score":
        content["vote"]["score"] = 9.0
    elif damage == "no digest":
        del content["sha256"]
    elif damage == "other vote":
        content["key"] = "f" * 32
    text = json.dumps(content) if " " in damage and damage[0] != "{" else damage
    file.write_bytes(text.encode("latin-1"))
    judge = _Judge()
    assert CachedVoter(judge, VoteCache(tmp_path)).vote([_question("abc")])[0].verdict == "3"
    assert judge.asked == ["abc"]
    assert "is damaged" in caplog.text
    assert [f.name for f in file.parent.glob(".damaged-*")] == [f".damaged-{file.name}"]
    # Both were paid.
    assert VoteCache(tmp_path).cost(JUDGE) == 0.5


def test_a_disk_that_refuses_ends_the_sweep_with_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "votes"
    folder.write_text("a file in the way")
    with pytest.raises((StorageError, FileExistsError, NotADirectoryError)):
        CachedVoter(_Judge(), VoteCache(folder)).vote([_question("abc")])


def test_no_judge_writes_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "votes"
    for key in ("../../evil", "model:a/b", "/abs"):
        CachedVoter(_Judge(key), VoteCache(folder)).vote([_question("abc")])
        assert VoteCache(folder).cost(key) == 0.25
    assert [p.name for p in tmp_path.iterdir()] == ["votes"]


def _pay(folder: Path, which: int) -> None:
    CachedVoter(_Judge(), VoteCache(folder)).vote([_question(f"{which} {i}") for i in range(50)])


def test_several_processes_keep_and_pay_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_pay, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert len(list(tmp_path.glob("*/*/*.json"))) == 150
    assert VoteCache(tmp_path).cost(JUDGE) == 150 * 0.25


def test_a_torn_line_of_the_ledger_takes_no_other_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = VoteCache(tmp_path)
    CachedVoter(_Judge(), cache).vote([_question("a")])
    assert cache.cost(JUDGE) == 0.25
    with (tmp_path / JUDGE / "costs.txt").open("a") as ledger:
        ledger.write("0123 0.")
    CachedVoter(_Judge(), cache).vote([_question("b")])
    assert cache.cost(JUDGE) == VoteCache(tmp_path).cost(JUDGE) == 0.5
    assert "a line is damaged" in caplog.text
    assert VoteCache(tmp_path).cost("f" * 32) == 0


def test_the_cost_of_100000_votes_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / JUDGE).mkdir()
    (tmp_path / JUDGE / "costs.txt").write_text("".join(f"{n:032x} 0.25\n" for n in range(100_000)))
    cache = VoteCache(tmp_path)
    began = time.perf_counter()
    assert cache.cost(JUDGE) == 25_000
    assert time.perf_counter() - began < 2
    began = time.perf_counter()
    assert cache.cost(JUDGE) == 25_000
    assert time.perf_counter() - began < 0.05
