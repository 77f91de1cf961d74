"""What comes back: sound files once, everything else refused by name, with nothing stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.human import import_ratings, ratings_of
from harness.human._forms import digest
from harness.store import Store
from tests.human.conftest import signed, written
from tests.store.scenario import SWEEP

Fill = Callable[..., dict[str, Any]]
_COUNT = "SELECT count(*) FROM raw.human_ratings WHERE study <> 'people'"


def _spoil(content: dict[str, Any], how: str) -> dict[str, Any]:
    first = content["items"][0]
    match how:
        case "edited":
            return content | {"rater": "somebody else"}
        case "wrong form":
            content["form"] = "0" * 64
        case "unknown":
            first["item"] = "nowhere"
        case "scale":
            first["scores"][0][0] = 8
        case "open":
            first["scores"][0][0] = None
        case "missing":
            del content["items"][0]
        case "twice":
            content["items"].append(first)
    return signed(content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("edited", "was edited"),
        ("wrong form", "form that was not made"),
        ("unknown", "unknown items"),
        ("scale", "out of the scale"),
        ("open", "missing answers"),
        ("missing", "missing answers: 1 items"),
        ("twice", "stand there twice"),
    ],
)
def test_one_bad_file_is_refused_with_all(
    store: Store, forms: list[dict[str, Any]], fill: Fill, tmp_path: Path, how: str, message: str
) -> None:
    good = written(tmp_path / "good.json", fill(forms[0], "ann"))
    bad = written(tmp_path / "bad.json", _spoil(fill(forms[1], "bea"), how))
    with pytest.raises(UserError, match=message) as refused:
        import_ratings(store, [good, bad])
    assert "bad.json" in str(refused.value)
    assert "good.json" not in str(refused.value)
    store.ingest()
    assert store.query(_COUNT).item() == 0


def test_answers_come_in_once_and_newer_ones_replace_them_on_request(
    store: Store, forms: list[dict[str, Any]], fill: Fill, tmp_path: Path
) -> None:
    first = written(tmp_path / "a.json", fill(forms[0], "ann", base=2))
    newer = written(tmp_path / "b.json", fill(forms[0], "ann", base=3))
    with pytest.raises(UserError, match="the same form"):
        import_ratings(store, [first, first])
    import_ratings(store, [first])
    before = store.query(_COUNT).item()
    for again, replace, message in ((first, False, "already"), (newer, False, "--replace"), (first, True, "already")):
        with pytest.raises(UserError, match=message):
            import_ratings(store, [again], replace=replace)
    assert import_ratings(store, [newer], replace=True)[0].replaced
    assert store.query(_COUNT).item() == 2 * before
    latest = "SELECT DISTINCT score FROM ratings WHERE study <> 'people' AND recipe = 'base' AND kind = 'rating'"
    assert store.query(latest).rows() == [(3,)]
    with pytest.raises(UserError, match="newer ones have taken their place"):
        import_ratings(store, [first], replace=True)


def test_a_rater_who_failed_a_check_is_kept_and_left_out(
    store: Store, forms: list[dict[str, Any]], fill: Fill, tmp_path: Path
) -> None:
    (taken,) = import_ratings(store, [written(tmp_path / "a.json", fill(forms[0], "dan", attentive=False))])
    assert taken.failed == taken.checks == 2
    figures, everyone = ratings_of(store, SWEEP), ratings_of(store, SWEEP, failed=True)
    assert figures is not None
    assert everyone is not None
    assert {r.rater for r in figures.raters if not r.counted} == {"cy", "dan"}
    assert figures.rated[0].interval.n < everyone.rated[0].interval.n


def test_label_studio_goes_out_and_comes_back(store: Store, forms: list[dict[str, Any]], tmp_path: Path) -> None:
    tasks = json.loads((tmp_path / "forms/label-studio-tasks.json").read_text())
    criteria, pairs = forms[0]["criteria"], forms[0]["pairs"]
    for task in tasks:
        marks = {f"score_{a}_{c['name']}": "5" for a in (1, 2, 3) for c in criteria}
        marks |= {f"preference_{n}": "3" for n, _ in enumerate(pairs, start=1)}
        result = [{"from_name": n, "type": "choices", "value": {"choices": [m]}} for n, m in marks.items()]
        task["annotations"] = [{"completed_by": {"id": 7, "email": "a@b.c"}, "result": result, "lead_time": 4.288}]
    (taken,) = import_ratings(store, [written(tmp_path / "export.json", tasks)])
    assert (taken.rater, taken.items) == ("label-studio-7", len(tasks))
    found = (
        "SELECT DISTINCT score, preference FROM raw.human_ratings WHERE rater = 'label-studio-7' AND kind <> 'check'"
    )
    assert set(store.query(found).rows()) == {(5, None), (None, 1)}


def test_nothing_in_a_form_tells_whose_an_answer_is(store: Store, forms: list[dict[str, Any]], tmp_path: Path) -> None:
    for file in (tmp_path / "forms").iterdir():
        text = file.read_text()
        for (secret,) in store.query(
            "SELECT DISTINCT artifact FROM scores UNION SELECT DISTINCT measurement FROM scores"
        ).rows():
            assert secret not in text
        assert SWEEP not in text
    assert digest({k: v for k, v in forms[0].items() if k != "digest"}) == forms[0]["digest"]
