"""What judges think of one model: its answers to held-out prompts, each put to every judge for each aspect.

The model under test answers greedily; a judge reads prompt and answer (Zheng et al. 2023, "Judging LLM-as-a-Judge",
arXiv:2306.05685). Conversations of two turns are graded turn by turn, as in their MT-Bench, against the right answer
where the set has one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness._measures import Judge
from harness.data import DataSource, Half
from harness.errors import UserError
from harness.keys import content_key
from harness.measure._again import halves_of, pass_tokens
from harness.measure._requests import Requests
from harness.measure.judge._answers import answer_turns
from harness.measure.judge._reading import text_of_chat
from harness.measure.judge._rows import said, shares_json
from harness.measure.judge._sets import judge_prompts
from harness.measure.judge._templates import TEMPLATE_VERSION
from harness.measure.judge._types import UNPARSED, AspectName, JudgePrompt, Progress, Question, Verdict, Voter
from harness.method import LoadedModel

__all__ = ["judge_fingerprint", "measure_judge"]

Row = dict[str, object]


def judge_fingerprint(source: DataSource, judge: Judge) -> str:
    """What decides the votes beside the models: prompts, aspects, lengths and the templates. Needs no torch.

    Raises:
        UserError: a dataset that is not there or holds no prompts.
    """
    asked = [
        [list(map(list, p.chat)), list(p.aspects), p.follow_up, list(p.references), p.category, p.ordinary]
        for p in judge_prompts(source, judge)
    ]
    return content_key("judge", template=TEMPLATE_VERSION, prompts=asked, max_new_tokens=judge.max_new_tokens)


@dataclass(frozen=True)
class _Rated:
    """One thing that every judge is asked: an aspect of one answer."""

    prompt: JudgePrompt
    aspect: AspectName
    turn: int | None
    said: str
    """What the user said in this turn."""
    response: str
    question: Question


def measure_judge(
    loaded: LoadedModel,
    voters: Sequence[Voter],
    source: DataSource,
    judge: Judge,
    halves: Sequence[Half],
    progress: Progress,
    *,
    repeat: int = 0,
    record: Callable[[Requests], None] | None = None,
) -> list[Row]:
    """Answer the prompts of these halves with one model and have the answers judged.

    A prompt is answered once, however many aspects and judges look at the answer.

    Args:
        voters: who judges.
        judge: of the suite: which prompts, which aspects, how long an answer may be.
        progress: called with (done, total): an answer is one, a vote is one.
        repeat: number of the repeat, for the noise floor: other than 0, prompts and votes meet in other batches.
        record: called at the end with what there is to know of the requests for an answer.

    Returns:
        Rows of table `judge_votes` but for `measurement`, one for each answer (turn), aspect and judge. A vote that
        could not be read is a row with the verdict `unparsed` and no score.

    Raises:
        UserError: bad data, no prompt in these halves, or a judge that cannot be asked.
        MeasurementError: a judge gave no answer, or probabilities that are not finite.
    """
    prompts = [p for p in judge_prompts(source, judge) if p.half in halves]
    if not prompts:
        raise UserError(f"judge: no prompt within the limit is in the half {', '.join(halves)}; raise the limit")
    wanted = sum(1 + (p.follow_up is not None) for p in prompts)
    total = wanted + len(voters) * sum(_turns(p, aspect) for p in prompts for aspect in p.aspects)
    counts = Requests()
    answers: list[tuple[JudgePrompt, tuple[str, ...]]] = []
    done = 0

    def told(now: int, _: int) -> None:
        progress(done + now, total)

    for part in halves_of(prompts, repeat):
        tokens = pass_tokens(loaded.model, repeat)
        found = answer_turns(loaded, part, judge.max_new_tokens, told, tokens=tokens, counts=counts)
        answers += zip(part, found, strict=True)
        done += sum(map(len, found))
    rated = [one for prompt, turns in answers for aspect in prompt.aspects for one in _rated(prompt, aspect, turns)]
    votes: list[Row] = []
    for voter in voters:
        for some in halves_of(rated, repeat):
            verdicts = voter.vote([one.question for one in some], progress=told)
            votes += [_row(one, voter, verdict) for one, verdict in zip(some, verdicts, strict=True)]
            done += len(verdicts)
            told(0, 0)
    if record is not None:
        record(counts)
    return votes


def _turns(prompt: JudgePrompt, aspect: AspectName) -> int:
    """Of its answers, how many are judged for the aspect."""
    return 2 if aspect == "multi_turn" and prompt.follow_up is not None else 1


def _rated(prompt: JudgePrompt, aspect: AspectName, answers: tuple[str, ...]) -> list[_Rated]:
    if aspect != "multi_turn":
        question = Question(aspect, {"prompt": prompt.text, "response": answers[0]})
        return [_Rated(prompt, aspect, None, prompt.text, answers[0], question)]
    rated = []
    history = ""
    for index in range(_turns(prompt, aspect)):
        said = prompt.text if index == 0 else prompt.follow_up or ""
        texts = {"history": history, "prompt": said, "response": answers[index]}
        question = Question("multi_turn", texts)
        if index < len(prompt.references):
            question = Question("multi_turn_reference", {**texts, "reference": prompt.references[index]})
        rated.append(_Rated(prompt, aspect, index + 1, said, answers[index], question))
        history = text_of_chat((("user", said), ("assistant", answers[index])))
    return rated


def _row(one: _Rated, voter: Voter, verdict: Verdict) -> Row:
    return {
        "document": one.prompt.document,
        "half": one.prompt.half,
        "aspect": one.aspect,
        "turn": one.turn,
        "category": one.prompt.category,
        "prompt": one.said,
        "response": one.response,
        "verdict": UNPARSED if verdict.verdict is None else verdict.verdict,
        "score": verdict.score,
        "probabilities": shares_json(verdict.probabilities),
        **said(voter, verdict),
    }
