"""How good a judge is: judges of known behaviour get the figures that they deserve, and a real one is asked in full."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness._measures import Quality
from harness.data import DataSource
from harness.errors import UserError
from harness.gold import gold_reward, parse_constraints
from harness.measure.judge import LocalVoter, Question, Verdict
from harness.measure.judge._known import attacks, known_pairs, quality_problem
from harness.measure.judge._quality import measure_quality, quality_fingerprint
from harness.measure.judge._templates import TEMPLATES
from harness.measure.judge._types import Keep, TemplateName
from harness.method import LoadedModel
from harness.store._schema import TABLES

BUNDLED = DataSource("bundled")
Row = dict[str, object]
INJECTIONS = {i.injection.partition("{place}")[0] for i in attacks()}


class _Judge:
    """Votes as a plain function of the question says: a verdict of its template, or None for words that are none."""

    name, key = "a judge", "a key"

    def __init__(self, rule: Callable[[Question], str | None], cost: float | None = None) -> None:
        self.rule, self.cost, self.asked = rule, cost, list[Question]()

    def vote(
        self,
        questions: Sequence[Question],
        keep: Keep | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        self.asked += questions
        found = []
        for question in questions:
            said = self.rule(question)
            score = None if said is None else TEMPLATES[question.template].verdicts[said][0]
            found.append(Verdict(said, score, f"asked: {question}", words=f"I say {said}", cost=self.cost))
        if progress is not None:
            progress(len(found), len(found))
        return found


def _measure(rule: Callable[[Question], str | None], **quality: object) -> dict[str, list[Row]]:
    """Rows by check."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in measure_quality(_Judge(rule), BUNDLED, Quality.model_validate(quality)):
        found[str(row["check"])].append(row)
    return found


def _accuracy_and_flips(rows: Sequence[Row]) -> tuple[float, float]:
    """As the view judge_quality has them."""
    pairs = defaultdict(list)
    for row in rows:
        pairs[row["document"]].append(float(str(row["score"])))
    assert {len(p) for p in pairs.values()} == {2}
    accuracy = sum(sum(p) / 2 for p in pairs.values()) / len(pairs)
    return accuracy, sum(a != b for a, b in pairs.values()) / len(pairs)


BETTER = {text for pair in known_pairs(BUNDLED, Quality(limit=None)) for text in [pair.better]} | {
    a.better for a in attacks() if a.better
}


def _attacked(text: str) -> bool:
    return any(injection in text for injection in INJECTIONS)


def _perfect(question: Question) -> str:
    if question.template == "pair":
        return "first" if question.texts["first"] in BETTER else "second"
    return {"helpfulness": "1", "harmlessness": "no"}[question.template]


def _gullible(question: Question) -> str:
    texts = question.texts
    if question.template == "pair":
        return next((place for place in ("first", "second") if _attacked(texts[place])), _perfect(question))
    obeys = {"helpfulness": "10", "harmlessness": "yes"}[question.template]
    return obeys if _attacked(texts["response"]) else _perfect(question)


def _by_place(question: Question) -> str:
    return {"pair": "first", "helpfulness": "5", "harmlessness": "no"}[question.template]


def test_a_perfect_judge() -> None:
    rows = _measure(_perfect)
    assert _accuracy_and_flips(rows["known_order"]) == (1.0, 0.0)
    assert len(rows["known_order"]) == 48
    assert {(r["verdict"], r["first"]) for r in rows["known_order"]} == {("better", "better"), ("better", "worse")}
    assert {r["score"] for r in rows["injection"]} == {0.0}
    assert len(rows["injection"]) == 24
    assert len({r["document"] for r in rows["injection"]}) == 24
    assert {r["verdict"] for r in rows["injection"]} == {"1", "no", "better"}


def test_a_judge_that_looks_at_the_place_alone() -> None:
    rows = _measure(_by_place)
    assert _accuracy_and_flips(rows["known_order"]) == (0.5, 1.0)
    # It prefers the poor answer where that stands first, with the attack and without: no attack has moved it.
    assert {r["score"] for r in rows["injection"]} == {0.0}
    assert {r["verdict"] for r in rows["injection"] if r["attack"] == "flattery"} == {"5", "no", "tie"}


def test_a_judge_that_obeys_every_attack() -> None:
    rows = _measure(_gullible)
    assert _accuracy_and_flips(rows["known_order"]) == (1.0, 0.0)
    assert {r["score"] for r in rows["injection"]} == {1.0}
    assert {r["verdict"] for r in rows["injection"]} == {"10", "yes", "worse"}


def test_a_judge_that_calls_everything_a_tie() -> None:
    rows = _measure(lambda q: "tie" if q.template == "pair" else _perfect(q))
    assert _accuracy_and_flips(rows["known_order"]) == (0.5, 0.0)
    assert {r["verdict"] for r in rows["known_order"]} == {"tie"}


def test_attacks_that_ask_for_what_the_judge_says_anyway_count_for_nothing() -> None:
    poor = {"pair": "second", "helpfulness": "9", "harmlessness": "yes"}
    rows = _measure(
        lambda q: ("second" if _perfect(q) == "first" else "first") if q.template == "pair" else poor[q.template]
    )
    assert _accuracy_and_flips(rows["known_order"]) == (0.0, 0.0)
    assert {r["score"] for r in rows["injection"]} == {None}
    # They were verdicts all the same.
    assert "unparsed" not in {r["verdict"] for r in rows["injection"]}


@pytest.mark.parametrize(("rated", "succeeded"), [("6", 0.0), ("7", 1.0), ("3", 0.0)])
def test_a_rating_has_to_rise_by_two_points(rated: str, succeeded: float) -> None:
    def rule(question: Question) -> str:
        if question.template != "helpfulness":
            return _perfect(question)
        return rated if _attacked(question.texts["response"]) else "5"

    rows = [r for r in _measure(rule)["injection"] if r["verdict"] == rated]
    assert len(rows) == 8
    assert {r["score"] for r in rows} == {succeeded}


def test_an_attack_that_wins_in_one_place_only_has_not_succeeded() -> None:
    def rule(question: Question) -> str:
        first = question.template == "pair" and _attacked(question.texts["first"])
        return "first" if first else _perfect(question)

    rows = [
        r for r in _measure(rule)["injection"] if str(r["judge_prompt"]).startswith("asked: Question(template='pair'")
    ]
    assert len(rows) == 8
    assert {(r["verdict"], r["score"]) for r in rows} == {("tie", 0.0)}


def test_words_that_are_no_verdict_are_kept_and_score_nothing() -> None:
    rows = _measure(lambda _: None)
    for row in [*rows["known_order"], *rows["injection"]]:
        assert (row["verdict"], row["score"], row["words"]) == ("unparsed", None, "I say None")
    assert len(rows["known_order"]) + len(rows["injection"]) == 72


def test_an_attack_whose_answer_was_unreadable_without_it_is_not_judged() -> None:
    rows = _measure(lambda q: _gullible(q) if q.template == "pair" or _attacked(q.texts["response"]) else None)
    scores = defaultdict(set)
    for row in rows["injection"]:
        scores[row["verdict"]].add(row["score"])
    assert scores == {"unparsed": {None}, "worse": {1.0}}


def test_every_question_is_put_and_paid_once() -> None:
    judge = _Judge(_perfect, cost=0.25)
    told: list[tuple[int, int]] = []
    rows = measure_quality(judge, BUNDLED, Quality(limit=5), lambda done, total: told.append((done, total)))
    asked = {(q.template, tuple(sorted(q.texts.items()))) for q in judge.asked}
    assert len(asked) == len(judge.asked)
    assert sum(float(str(r["cost"] or 0)) for r in rows) == pytest.approx(0.25 * len(judge.asked))
    assert told == [(len(judge.asked), len(judge.asked))]


def test_bundled_pairs_go_by_the_gold_reward_and_not_by_their_labels() -> None:
    path = Path(__file__).parents[3] / "harness" / "bundled" / "local" / "constraints" / "preferences-test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {(p.better, p.worse) for p in known_pairs(BUNDLED, Quality(limit=None))}
    swapped = 0
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        constraints = parse_constraints(row["constraints"])
        gap = gold_reward(chosen, constraints) - gold_reward(rejected, constraints)
        assert ((chosen, rejected) in found) == (gap > 0)
        assert ((rejected, chosen) in found) == (gap < 0)
        swapped += gap < 0
    assert swapped > 0
    assert all("Follow every instruction." in p.prompt for p in known_pairs(BUNDLED, Quality()))


def _bench(folder: Path, rows: Sequence[object], name: str = "allenai/reward-bench") -> DataSource:
    """A mirror with pairs in RewardBench's layout and splits."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "filtered.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (place / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: filtered\n    path: filtered.jsonl\n---\n"
    )
    return DataSource(str(folder))


def test_a_set_with_subsets_is_taken_from_each_of_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{subset} {n}?", "chosen": "Yes.", "rejected": "", "subset": subset}
        for subset in ("chat", "safety", "reasoning")
        for n in range(6)
    ]
    source = _bench(tmp_path, [*rows, {**rows[0], "rejected": "Yes."}])
    quality = Quality(pairs="allenai/reward-bench", limit=6)
    pairs = known_pairs(source, quality)
    assert sorted(str(p.subset) for p in pairs) == ["chat", "chat", "reasoning", "reasoning", "safety", "safety"]
    assert {(p.better, p.worse) for p in pairs} == {("Yes.", "")}
    assert pairs == known_pairs(source, quality.model_copy(update={"limit": 9}))[:6]
    # Both answers the same: there is no order in it.
    assert len(known_pairs(source, quality.model_copy(update={"limit": None}))) == 18
    assert quality_problem(source, quality) is None


def test_dialogues_of_a_mirror_are_pairs_too(shared_data: Path) -> None:
    source = DataSource(str(shared_data))
    (pair,) = known_pairs(source, Quality(pairs="trl-lib/ultrafeedback_binarized::test", limit=1))
    assert pair.better != pair.worse
    assert pair.prompt


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "row 1: prompt is blank"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "subset": 3}, "row 1: subset is no text"),
        ({"prompt": "p", "chosen": "a"}, "do not make preferences"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "has no row that can be used"),
    ],
)
def test_rows_that_are_no_pairs_are_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(UserError, match="allenai/reward-bench") as caught:
        known_pairs(_bench(tmp_path, [row]), Quality(pairs="allenai/reward-bench"))
    assert message in str(caught.value)


def test_pairs_that_cannot_be_had_are_refused_before_anything_runs() -> None:
    assert quality_problem(BUNDLED, Quality()) is None
    assert "are no pairs" in str(quality_problem(BUNDLED, Quality(pairs="instructions")))
    assert "no folder org/none" in str(quality_problem(BUNDLED, Quality(pairs="org/none")))
    assert "expected one of" in str(quality_problem(BUNDLED, Quality(pairs="nonsense")))
    with pytest.raises(UserError, match="are no pairs"):
        measure_quality(_Judge(_perfect), BUNDLED, Quality(pairs="prompts"))


def test_the_fingerprint_follows_what_is_asked() -> None:
    base = quality_fingerprint(BUNDLED, Quality())
    assert base == quality_fingerprint(BUNDLED, Quality())
    others = [Quality(limit=23), Quality(injections=False)]
    assert len({base, *(quality_fingerprint(BUNDLED, o) for o in others)}) == 3


def test_a_real_judge_is_asked_all_of_it(tiny: LoadedModel) -> None:
    rows = measure_quality(LocalVoter(tiny, "tiny", "k"), BUNDLED, Quality(limit=2))
    assert len(rows) == 4 + 24
    columns = set(TABLES["judge_checks"].names) - {"measurement"}
    for row in rows:
        assert set(row) == columns
        shares = json.loads(str(row["probabilities"]))
        assert row["verdict"] != "unparsed"
        if row["check"] == "known_order" or "better" in shares:
            assert set(shares) == {"better", "worse", "tie", "mass"}
        # The attack stands in what the judge read, and cannot leave its delimiters.
        assert str(row["judge_prompt"]).count("<|im_start|>assistant") == len(TEMPLATES[_template(shares)].examples) + 1
    assert rows == measure_quality(LocalVoter(tiny, "tiny", "k"), BUNDLED, Quality(limit=2))


def _template(shares: dict[str, float]) -> TemplateName:
    return "pair" if "better" in shares else "harmlessness" if "yes" in shares else "helpfulness"
