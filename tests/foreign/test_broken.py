"""Results that are cut off, edited or made to harm: one clear error each, and nothing of them is stored."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.foreign import import_lm_eval
from harness.foreign._folder import find_tasks
from harness.foreign._samples import read_samples
from harness.store import Store
from tests.foreign import folders
from tests.foreign.folders import DATE

RESULTS, SAMPLES = f"results_{DATE}.json", f"samples_quiz_{DATE}.jsonl"


def _results(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        found = json.loads((folder / RESULTS).read_text())
        change(found)
        (folder / RESULTS).write_text(json.dumps(found))

    return apply


def _line(number: int, **fields: object) -> Callable[[Path], object]:
    """Set fields of a line (from 1); `...` removes one."""

    def apply(folder: Path) -> None:
        lines = (folder / SAMPLES).read_text().splitlines()
        changed = {**json.loads(lines[number - 1]), **fields}
        lines[number - 1] = json.dumps({k: v for k, v in changed.items() if v is not ...})
        (folder / SAMPLES).write_text("\n".join(lines) + "\n")

    return apply


def _text(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def _linked(folder: Path) -> None:
    (folder / SAMPLES).rename(folder / "elsewhere")
    (folder / SAMPLES).symlink_to(folder / "elsewhere")


def _pipe(folder: Path) -> None:
    (folder / SAMPLES).unlink()
    os.mkfifo(folder / SAMPLES)


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _other_model(folder: Path) -> None:
    other = folders.plain(folder / "other", date="2026-03-02T10-00-00.5")
    (path,) = other.glob("results_*")
    path.write_text(path.read_text().replace("models/tiny", "models/huge"))


def _other_dtype(folder: Path) -> None:
    folders.plain(folder, task="second", date="2026-03-02T10-00-00.5")
    path = folder / "results_2026-03-02T10-00-00.5.json"
    found = json.loads(path.read_text())
    found["config"]["model_args"]["dtype"] = "bfloat16"
    path.write_text(json.dumps(found))


def _without_samples(folder: Path) -> None:
    folders.plain(folder, date="2026-03-02T10-00-00.5")
    (folder / "samples_quiz_2026-03-02T10-00-00.5.jsonl").unlink()


def _predicted_only(folder: Path) -> None:
    lines = [folders.sample(0, {"q": 1}, bypass=None)]
    folders.write(folder, folders.results({"quiz": {"bypass,none": 999}}, {"quiz": lines}), {"quiz": lines})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (_emptied, r"no results_<date>\.json"),
    "results cut off": (_text(RESULTS, lambda t: t[:300]), rf"{RESULTS}: not JSON .*cut off or edited"),
    "results empty": (_text(RESULTS, lambda _: ""), rf"{RESULTS}: the file is empty"),
    "results a list": (_text(RESULTS, lambda _: "[1]"), rf"{RESULTS}: expected a JSON object, got \[1\]"),
    "results of something else": (_text(RESULTS, lambda _: '{"a": 1}'), rf"{RESULTS}: results: expected an object"),
    "results nested": (_text(RESULTS, lambda _: '{"a":' * 100_000), rf"{RESULTS}: nested too deeply"),
    "results with a huge number": (
        _text(RESULTS, lambda _: f'{{"a": {"9" * 5000}}}'),
        rf"{RESULTS}: Exceeds the limit",
    ),
    "results huge": (lambda f: os.truncate(f / RESULTS, 2**29), rf"{RESULTS}: has 536870912 bytes; expected at most"),
    "results without figures": (
        _results(lambda r: r["results"].pop("quiz")),
        "quiz: expected its figures.*got nothing",
    ),
    "a figure missing": (
        _results(lambda r: r["results"]["quiz"].pop("exact_match,none")),
        "quiz: exact_match,none: expected a finite number, got nothing",
    ),
    "a figure NaN": (
        _results(lambda r: r["results"]["quiz"].update({"exact_match,none": float("nan")})),
        "quiz: exact_match,none: expected a finite number, got nan",
    ),
    "a figure edited": (
        _results(lambda r: r["results"]["quiz"].update({"exact_match,none": 0.50001})),
        r"quiz: exact_match,none is 0\.50001 in the results, but 0\.5 over its 4 samples \(-1e-05\).*--allow-mismatch",
    ),
    "a figure too many": (_results(lambda r: r["results"]["quiz"].update({"acc,none": 1})), "acc,none has no samples"),
    "a task that leads elsewhere": (
        _results(lambda r: r["configs"].update({"../../x": {}})),
        r"configs: \.\./\.\./x cannot be the name of a task",
    ),
    "a configuration that is none": (_results(lambda r: r["configs"].update(quiz=3)), "configs: quiz: .*got 3"),
    "no samples": (lambda f: (f / SAMPLES).unlink(), "run lm-eval again with --log_samples$"),
    "no samples in the latest run": (_without_samples, "again with --log_samples; or remove this file, and an earlier"),
    "samples empty": (_text(SAMPLES, lambda _: ""), rf"{SAMPLES}: the file is empty"),
    "samples cut in a line": (_text(SAMPLES, lambda t: t[:-40]), rf"{SAMPLES}:4: not JSON .*cut off"),
    "samples cut between lines": (
        _text(SAMPLES, lambda t: "\n".join(t.splitlines()[:3])),
        rf"{SAMPLES}: scores of 3 documents, the results are over 4: cut off",
    ),
    "samples not UTF-8": (lambda f: (f / SAMPLES).write_bytes(b'{"doc_id": "\xff"}'), rf"{SAMPLES}:1: byte 0xff"),
    "samples a link": (_linked, rf"{SAMPLES}: expected an ordinary file, not a link"),
    "samples a pipe": (_pipe, rf"{SAMPLES}: expected an ordinary file"),
    "samples huge": (lambda f: os.truncate(f / SAMPLES, 2**33), rf"{SAMPLES}: has 8589934592 bytes"),
    "a line no object": (_text(SAMPLES, lambda t: "3\n" + t), rf"{SAMPLES}:1: expected a JSON object, got 3"),
    "a document twice": (_line(3, doc_id=1), rf"{SAMPLES}:3: doc_id 1 stands twice for the filter none, first at .*:2"),
    "no document number": (_line(2, doc_id=True), rf"{SAMPLES}:2: doc_id: expected the document's number.*got True"),
    "no document": (_line(2, doc=...), rf"{SAMPLES}:2: doc: expected the document, got nothing"),
    "a document edited": (_line(2, doc={"q": "easier"}), rf"{SAMPLES}:2: the document is not the one .*\(doc_hash\)"),
    "a prompt edited": (
        _line(2, arguments={"gen_args_0": {"arg_0": "Easier"}}),
        rf"{SAMPLES}:2: the prompt is not the one that was evaluated \(prompt_hash\)",
    ),
    "a target edited": (_line(2, target="u"), rf"{SAMPLES}:2: the target is not the one"),
    "hashes edited": (_line(2, doc_hash="0" * 64), r"not the samples that the results were made of \(task_hashes\)"),
    "a hash that is none": (_line(2, doc_hash="0x"), rf"{SAMPLES}:2: doc_hash: expected a sha256"),
    "a score edited": (_line(2, exact_match=1.0), r"is 0\.5 in the results, but 0\.75 over its 4 samples \(\+0\.25\)"),
    "a score NaN": (
        _line(2, exact_match=float("nan")),
        rf"{SAMPLES}:2: exact_match: expected a finite number, got nan",
    ),
    "a score a text": (_line(2, exact_match="1"), rf"{SAMPLES}:2: exact_match: expected a finite number, got 1"),
    "a score missing": (_line(2, exact_match=...), rf"{SAMPLES}:2: metrics: expected names of scores"),
    "a score named like a field": (_line(2, metrics=["doc_id"]), rf"{SAMPLES}:2: metrics: expected names of scores"),
    "a filter missing": (_line(2, filter="strict"), rf"{SAMPLES}:\d: doc_id \d has a sample for one of the filters"),
    "half a character": (_line(2, resps=[["\ud800"]]), rf"{SAMPLES}:2: resps: expected whole characters"),
    "no response": (_line(2, resps=[]), rf"{SAMPLES}:2: resps: expected a list of responses"),
    "no request": (_line(2, arguments={"a": 1}), rf"{SAMPLES}:2: arguments: expected gen_args_0"),
    "a log-likelihood NaN": (_line(2, resps=[[["nan", "False"]]]), rf"{SAMPLES}:2: resps: .*weights are broken"),
    "several models": (_other_model, r"holds results of 2 models \(huge, tiny\); import each"),
    "several settings of a model": (_other_dtype, "second was made with other model arguments or another seed"),
    "only predictions": (_predicted_only, "no task has scores of single documents: quiz: bypass"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    folder = folders.plain(tmp_path / "out")
    change(folder)
    store = Store(tmp_path / "results")
    with pytest.raises(UserError, match=message) as caught:
        import_lm_eval(folder, store, "x")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + 2 * len(str(tmp_path))
    assert not store.results.exists()


def test_what_was_broken_is_sound_without_the_change(tmp_path: Path) -> None:
    assert import_lm_eval(folders.plain(tmp_path / "out"), Store(tmp_path / "results"), "x").tasks == {"quiz": 4}


@pytest.mark.parametrize("name", ["a score NaN", "a document twice", "a log-likelihood NaN", "samples cut in a line"])
def test_some_things_no_flag_allows(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    folder = folders.plain(tmp_path / "out")
    change(folder)
    with pytest.raises(UserError, match=message):
        import_lm_eval(folder, Store(tmp_path / "results"), "x", allow_mismatch=True)


@pytest.mark.parametrize("name", ["", "a b", "../x", "base", "x" * 58, "-x"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name"):
        import_lm_eval(folders.plain(tmp_path / "out"), Store(tmp_path / "results"), name)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; expected the folder that lm-eval's --output_path named"):
        import_lm_eval(tmp_path / "absent", Store(tmp_path), "x")


_PIECES = st.sampled_from(
    ['"doc_id"', '"none"', "null", "[]", "{}", "-1", "1e999", '"\\ud800"', "[[", "\x00", "true", '"exact_match"', "99"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_a_file_the_error_is_ours(data: st.DataObject, tmp_path: Path) -> None:
    folder = folders.plain(tmp_path / "out")
    for name in data.draw(st.sampled_from([(RESULTS,), (SAMPLES,), (RESULTS, SAMPLES)])):
        text = (folder / name).read_text()
        start = data.draw(st.integers(0, len(text)))
        # To the end of a token or so: structures stay whole often enough to get past the parser.
        end = start + data.draw(st.integers(0, 12))
        (folder / name).write_text(text[:start] + data.draw(_PIECES) + text[end:])
    for allowed in (False, True):
        try:
            for one in find_tasks(folder):
                read_samples(one, allow_mismatch=allowed)
        except UserError:
            continue


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_stands_for_a_value_the_error_is_ours(data: st.DataObject, tmp_path: Path) -> None:
    odd: st.SearchStrategy[object] = st.sampled_from(
        [None, True, -1, 10**30, 1.5, "x", "\ud800", [], [[]], {}, {"gen_args_0": {}}, [{}], ["a"]]
    )
    folder = folders.plain(tmp_path / "out")
    first = json.loads((folder / SAMPLES).read_text().splitlines()[0])
    _line(data.draw(st.integers(1, 4)), **{data.draw(st.sampled_from(sorted(first))): data.draw(odd)})(folder)
    found = json.loads((folder / RESULTS).read_text())
    place = data.draw(st.sampled_from([found, *(v for v in found.values() if isinstance(v, dict))]))
    if place:
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(odd)
    (folder / RESULTS).write_text(json.dumps(found))
    with contextlib.suppress(UserError):
        import_lm_eval(folder, Store(tmp_path / "results"), "x", allow_mismatch=data.draw(st.booleans()))
