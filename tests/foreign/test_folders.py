"""Folders of lm-eval results as they may be: several runs, repeats, tasks that change their documents, odd metrics."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness._documents import canonical_document, identities
from harness.foreign import import_lm_eval
from harness.foreign._documents import fits
from harness.foreign._folder import find_tasks
from harness.foreign._provenance import scrubbed
from harness.foreign._samples import read_samples
from harness.store import Store
from tests.foreign import folders
from tests.foreign.folders import sample

EARLIER, LATER = "2026-03-01T09-00-00.5", "2026-03-01T10-00-00"


def test_the_latest_run_of_each_task_counts(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "__home__tiny"
    folders.plain(folder, (0.0, 0.0), "quiz", EARLIER)
    folders.plain(folder, (1.0, 0.0), "quiz", LATER)
    folders.plain(folder, (1.0, 1.0), "other", EARLIER.replace("09", "08"))
    store = Store(tmp_path / "results")
    found = import_lm_eval(tmp_path / "out", store, "x")
    assert dict(store.query("SELECT task, value FROM scores").rows()) == {"quiz": 0.5, "other": 1.0}
    assert found.taken == {"quiz": f"results_{LATER}.json", "other": f"results_{EARLIER.replace('09', '08')}.json"}
    assert found.notes == (f"quiz: the latest of 2 runs counts, results_{LATER}.json",)
    assert store.query("SELECT trial, seed, seconds FROM trials").rows() == [(0, 7, 7.0)]


def test_another_result_under_the_same_name_is_another_sweep_of_the_same_suite(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    first = import_lm_eval(folders.plain(tmp_path / "a", (1.0, 0.0)), store, "x")
    second = import_lm_eval(folders.plain(tmp_path / "b", (1.0, 1.0)), store, "x")
    assert first.sweep != second.sweep
    assert set(store.query("SELECT sweep, suite FROM suites").rows()) == {
        (first.sweep, "import-x"),
        (second.sweep, "import-x"),
    }


def test_a_task_that_changes_its_documents_goes_by_their_hash(tmp_path: Path) -> None:
    lines = {"quiz": [{**sample(i, {"q": str(i)}, acc=1.0), "doc_hash": f"{i}" * 64} for i in (7, 7, 9)]}
    for number, line in enumerate(lines["quiz"]):
        line["doc_id"] = number
    folder = folders.write(tmp_path / "a", folders.results({"quiz": {"acc,none": 1.0}}, lines), lines)
    store = Store(tmp_path / "results")
    found = import_lm_eval(folder, store, "x")
    assert "go by that hash" in found.notes[0]
    documents = store.query("SELECT document FROM samples")["document"].to_list()
    assert len(set(documents)) == 3
    assert {"7" * 16, "9" * 16} < set(documents)


def test_equal_documents_are_rows_of_their_own(tmp_path: Path) -> None:
    lines = {"quiz": [sample(i, {"q": "same"}, acc=float(i)) for i in (1, 0)]}
    folder = folders.write(tmp_path, folders.results({"quiz": {"acc,none": 0.5}}, lines), lines)
    rows = read_samples(find_tasks(folder)[0]).rows
    # In the order of the documents, not of the lines: which occurrence is which decides the pairs.
    text = canonical_document({"q": "same"})
    assert [(r["document"], r["score"]) for r in rows] == list(
        zip(identities("quiz", [text, text]), (0.0, 1.0), strict=True)
    )


def test_repeats_and_filters(tmp_path: Path) -> None:
    answers = [["7", "8", "8"]]
    lines = {
        "quiz": [
            sample(i, {"q": i}, used, resps=answers, exact_match=score)
            for used, scores in (("score-first", (0.0, 0.0)), ("maj@2", (1.0, 0.0)), ("maj@3", (1.0, 1.0)))
            for i, score in enumerate(scores)
        ]
    }
    figures = {"exact_match,score-first": 0.0, "exact_match,maj@2": 0.5, "exact_match,maj@3": 1.0}
    store = Store(tmp_path / "results")
    folder = folders.write(tmp_path / "a", folders.results({"quiz": figures}, lines), lines)
    import_lm_eval(folder, store, "x")
    assert dict(store.query("SELECT metric, value FROM scores").rows()) == {
        "exact_match_score": 0.0,
        "exact_match_maj@2": 0.5,
        "exact_match_maj@3": 1.0,
    }
    assert set(store.query("SELECT response FROM samples")["response"]) == {"7"}
    assert json.loads(store.query("SELECT settings FROM raw.measurements").item())["repeats"] == 3


def test_figures_that_are_no_means_are_told(tmp_path: Path) -> None:
    lines = {"quiz": [sample(i, {"q": i}, perplexity=-2.0 - i, acc=1.0, f1=[1, 0]) for i in range(2)]}
    figures = {"perplexity,none": 12.18, "acc,none": 1.0, "f1,none": 0.5}
    found = folders.results({"quiz": figures}, lines)
    found["configs"]["quiz"]["metric_list"] = [
        {"metric": "perplexity", "aggregation": "perplexity"},
        {"metric": "acc", "aggregation": "mean"},
        {"metric": "f1", "aggregation": "f1"},
    ]
    store = Store(tmp_path / "results")
    told = import_lm_eval(folders.write(tmp_path / "a", found, lines), store, "x")
    assert told.skipped == {"quiz": "f1: no score for each document, only for the whole task"}
    assert told.notes == (
        "quiz: perplexity: its figure in the results is no mean of the documents' scores, which are stored",
    )
    assert dict(store.query("SELECT metric, value FROM scores").rows()) == {"perplexity": -2.5, "acc": 1.0}


def test_a_mismatch_may_be_allowed_and_is_kept(tmp_path: Path) -> None:
    folder = folders.plain(tmp_path / "a")
    path = folder / f"results_{folders.DATE}.json"
    path.write_text(path.read_text().replace('"exact_match,none": 0.5', '"exact_match,none": 0.75'))
    store = Store(tmp_path / "results")
    found = import_lm_eval(folder, store, "x", allow_mismatch=True)
    assert "is 0.75 in the results, but 0.5 over its 4 samples (-0.25)" in found.notes[0]
    kept = json.loads(store.query("SELECT settings FROM raw.measurements").item())["mismatches"]
    assert len(kept) == 1
    assert str(tmp_path) not in kept[0]


def test_groups_become_what_a_suite_would_name(tmp_path: Path) -> None:
    lines = {"mmlu_x": [sample(0, {"q": 1}, acc=1.0)]}
    found = folders.results({"mmlu_x": {"acc,none": 1.0}}, lines)
    found["group_subtasks"] = {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_x"], "loop": ["mmlu"], "mmlu_x": ["loop"]}
    found["results"]["mmlu"] = {"acc,none": 1.0}
    store = Store(tmp_path / "results")
    import_lm_eval(folders.write(tmp_path / "a", found, lines), store, "x")
    assert "loop" in store.query("SELECT suite_json FROM suites").item()
    found["group_subtasks"].pop("loop")
    found["group_subtasks"].pop("mmlu_x")
    import_lm_eval(folders.write(tmp_path / "b", found, lines), store, "y")
    suites = store.query("SELECT suite_json FROM suites WHERE suite = 'import-y'").item()
    assert json.loads(suites)["measure"]["tasks"] == {"mmlu": {}}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


# The first example imports lm-eval.
@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), _VALUES, max_size=5))
def test_a_document_that_went_through_lm_eval_is_the_same_document(document: dict[str, object]) -> None:
    from lm_eval.utils import handle_non_serializable, hash_string

    logged = json.dumps({"doc": document}, default=handle_non_serializable, ensure_ascii=False)
    doc_hash = hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))
    back = json.loads(logged)["doc"]
    assert canonical_document(back) == canonical_document(document)
    assert fits(back, doc_hash)
    assert not fits({**back, "edited": 1}, doc_hash) or back == {**back, "edited": 1}


_NAMES = st.from_regex(r"[a-z][a-z0-9_-]{2,11}", fullmatch=True)


@settings(deadline=None)
@given(_NAMES, _NAMES, _NAMES)
def test_paths_keep_their_last_part(user: str, inner: str, last: str) -> None:
    user, inner, last = f"u-{user}", f"i-{inner}", f"l-{last}"
    for text in (
        f"/home/{user}/{inner}/{last}",
        f"/{user}/{last}/",
        f"~{user}/{inner}/{last}",
        f"../{user}/{last}",
        f"C:\\Users\\{user}\\{last}",
        f"\\\\{user}\\{inner}\\{last}",
        f"file:///{user}/{last}",
    ):
        assert scrubbed(text) == last, text
        assert user not in json.dumps(scrubbed({"a": [f"pretrained={text},dtype=float32"]}))
    # From the folder where they stood; two parts may be the name of a model on the hub.
    assert scrubbed(f"{user}/{inner}/{last}") == last
    assert scrubbed(f"{user}/{last}") == f"{user}/{last}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_url", "http://box17:8000/v1"),
        ("api_key", "not-to-be-seen-1"),
        ("server", "see http://box17:8000/v1 there"),
        ("peer", "10.0.0.17:8000"),
        ("by", "alice@box17.example"),
        ("hf_token", "hf_" + "a" * 30),
    ],
)
def test_addresses_and_secrets_go(name: str, value: str) -> None:
    stored = json.dumps(scrubbed({name: value}))
    assert "removed]" in stored
    assert not any(part in stored for part in ("box17", "not-to-be-seen", "10.0.0", "alice", "aaaa"))


def test_a_chat_for_a_server_is_one_prompt(tmp_path: Path) -> None:
    chat = '[{"role": "user", "content": "Q"}]'
    lines = {"quiz": [sample(0, {"q": 1}, prompt=chat, arguments={"gen_args_0": {"arg_0": [chat]}}, acc=1.0)]}
    folder = folders.write(tmp_path, folders.results({"quiz": {"acc,none": 1.0}}, lines), lines)
    assert [r["prompt"] for r in read_samples(find_tasks(folder)[0]).rows] == [chat]


def test_what_is_preferred_and_what_is_right(tmp_path: Path) -> None:
    def asked(*pairs: tuple[str, str]) -> dict[str, dict[str, str]]:
        return {f"gen_args_{i}": {"arg_0": a, "arg_1": b} for i, (a, b) in enumerate(pairs)}

    likelihoods = [[["-2.0", "False"]], [["-1.0", "False"]]]
    lines = {
        "quiz": [
            sample(0, 0, arguments=asked(("Q", " no"), ("Q", " yes")), resps=likelihoods, target="0", acc=0),
            # The prompts differ where the continuations do not.
            sample(1, 1, arguments=asked(("Q", " so"), ("R", " so")), resps=likelihoods, target="1", acc=1),
            sample(2, 2, arguments=asked(("Q", " a"), ("Q", " b")), resps=likelihoods, target="[0, 1]", acc=1),
        ]
    }
    found = folders.results({"quiz": {"acc,none": 2 / 3}}, lines)
    found["configs"]["quiz"]["output_type"] = "multiple_choice"
    rows = read_samples(find_tasks(folders.write(tmp_path, found, lines))[0]).rows
    assert [(r["response"], r["expected"]) for r in rows] == [("yes", "no"), ("R", "R"), ("b", "[0, 1]")]
