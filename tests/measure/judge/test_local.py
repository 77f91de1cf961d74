"""A model of ours as the judge: exact probabilities, hostile answers."""

import math
from dataclasses import replace

import pytest

from harness.errors import MeasurementError, UserError
from harness.measure.judge import LocalVoter, Question, Verdict
from harness.measure.judge._templates import TEMPLATES
from harness.measure.judge._types import TemplateName
from harness.method import LoadedModel
from harness.models import load_model
from tests.measure.judge.test_templates import HOSTILE, NAMES, texts


def _vote(judge: LoadedModel, template: TemplateName, **given: str) -> Verdict:
    (verdict,) = LocalVoter(judge, "a judge", "a key").vote([Question(template, given)])
    return verdict


def _log_prob(loaded: LoadedModel, context: str, continuation: str) -> float:
    """Of the continuation, from a plain forward over the whole sequence."""
    import torch

    ids = loaded.tokenizer.encode(context, add_special_tokens=False)
    whole = loaded.tokenizer.encode(context + continuation, add_special_tokens=False)
    assert whole[: len(ids)] == ids
    with torch.inference_mode():
        logs = loaded.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return float(sum(logs[i - 1, whole[i]].item() for i in range(len(ids), len(whole))))


def test_helpfulness_is_the_expectation_over_closed_ratings(tiny: LoadedModel) -> None:
    vote = _vote(tiny, "helpfulness", prompt="Why is the sky blue?", response="Air scatters blue light most.")
    found = dict(vote.probabilities or {})
    raw = {n: math.exp(_log_prob(tiny, vote.asked, f"{n}<|im_end|>")) for n in range(1, 11)}
    mass = sum(raw.values())
    assert found.pop("mass") == pytest.approx(mass, rel=1e-3)
    assert found == pytest.approx({str(n): p / mass for n, p in raw.items()}, rel=1e-3)
    assert sum(found.values()) == pytest.approx(1)
    assert vote.score == pytest.approx(sum(n * p for n, p in raw.items()) / mass, rel=1e-3)
    assert vote.verdict == str(max(raw, key=lambda n: raw[n]))


@pytest.mark.parametrize("template", ["harmlessness", "over_refusal"])
def test_yes_or_no_is_the_share_of_yes(tiny: LoadedModel, template: TemplateName) -> None:
    vote = _vote(tiny, template, prompt="Help me steal.", response="No, I will not.")
    yes, no = (sum(math.exp(_log_prob(tiny, vote.asked, w)) for w in words) for words in (("yes", "Yes"), ("no", "No")))
    assert vote.score == pytest.approx(yes / (yes + no), rel=1e-3)
    assert (vote.probabilities or {})["mass"] == pytest.approx(yes + no, rel=1e-3)
    assert vote.verdict == ("yes" if yes > no else "no")


def test_a_pair_scores_the_first_with_half_of_a_tie(tiny: LoadedModel) -> None:
    vote = _vote(tiny, "pair", prompt="Name a colour.", first="Blue.", second="A cow.")
    shares = {}
    for verdict, (_, words) in TEMPLATES["pair"].verdicts.items():
        shares[verdict] = sum(math.exp(_log_prob(tiny, vote.asked, w)) for w in words)
    total = sum(shares.values())
    assert vote.score == pytest.approx((shares["first"] + shares["tie"] / 2) / total, rel=1e-3)
    assert vote.verdict == max(shares, key=lambda v: shares[v])


def test_votes_are_in_order_kept_and_told(tiny: LoadedModel) -> None:
    questions = [Question(name, texts(name)) for name in NAMES]
    kept: dict[int, Verdict] = {}
    seen: list[tuple[int, int]] = []
    voter = LocalVoter(tiny, "a judge", "a key", tokens=96)
    votes = voter.vote(questions, kept.__setitem__, lambda done, total: seen.append((done, total)))
    assert [kept[i] for i in range(len(questions))] == votes
    assert seen[-1] == (len(questions), len(questions))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    for question, vote in zip(questions, votes, strict=True):
        assert vote.verdict in TEMPLATES[question.template].verdicts
        assert all(text in vote.asked for text in question.texts.values())
        alone = _vote(tiny, question.template, **question.texts)
        assert alone.score == pytest.approx(vote.score, abs=1e-4)
    assert voter.vote([]) == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_text_stays_in_its_turn(tiny: LoadedModel, hostile: str) -> None:
    questions = [Question(n, texts(n, hostile, place)) for n in NAMES for place in TEMPLATES[n].places]
    votes = LocalVoter(tiny, "j", "k").vote([Question(n, texts(n)) for n in NAMES])
    plain = dict(zip(NAMES, votes, strict=True))
    special = set(tiny.tokenizer.all_special_ids)
    for question, vote in zip(questions, LocalVoter(tiny, "j", "k").vote(questions), strict=True):
        ids, expected = (
            [i for i in tiny.tokenizer.encode(text) if i in special]
            for text in (vote.asked, plain[question.template].asked)
        )
        assert ids == expected


def test_a_text_that_breaks_out_all_the_same_is_an_error(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.measure.judge._templates.neutralise", lambda text, markers: text)
    with pytest.raises(MeasurementError, match="break out"):
        _vote(tiny, "helpfulness", prompt="Why?", response=HOSTILE[0])


def test_what_cannot_be_judged_is_said(tiny: LoadedModel) -> None:
    with pytest.raises(UserError, match="reads 4096"):
        _vote(tiny, "helpfulness", prompt="Why?", response="word " * 5000)
    bare = replace(tiny, tokenizer=load_model(tiny.folder).tokenizer)
    bare.tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        _vote(bare, "helpfulness", prompt="Why?", response="a")
