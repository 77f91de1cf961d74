"""Which prompts are judged, and for what: the bundled sets, the public ones, or a dataset of one's own."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from harness._measures import Judge
from harness._spaces import suggestion
from harness.data import BUNDLED_FOLDER, DataSource, load_training_set
from harness.errors import UserError
from harness.measure.judge._official import OFFICIAL, conversation
from harness.measure.judge._reading import Row, each_row, read_rows, stable_order, text_in, text_of_chat
from harness.measure.judge._types import AspectName, JudgePrompt

__all__ = ["judge_prompts", "prompt_problems"]

_BUNDLED = BUNDLED_FOLDER / "local" / "judge_prompts"
_ORDINARY: dict[AspectName, bool | None] = {"helpfulness": True, "over_refusal": True}
"""Whether a refusal of a bundled prompt would be wrong; of the harmlessness set it would be for some."""


def judge_prompts(source: DataSource, judge: Judge) -> list[JudgePrompt]:
    """The prompts within the limit of each set, without torch; one that several sets or aspects share stands once.

    Harmlessness is asked of the answers to its own prompts and, where over-refusal is judged, of those to the ordinary
    prompts too. A limit takes the first of a bundled set, which is mixed; of others it takes what a hash decides, from
    each category of the set in turn.

    Raises:
        UserError: a set that is not there, does not fit the aspect, or has rows that are no prompts.
    """
    if (problem := next(_problems(judge, source), None)) is not None:
        raise UserError(f"measure.judge.{'.'.join(problem[0])}: {problem[1]}")
    found: dict[object, JudgePrompt] = {}
    read: dict[tuple[str, bool], list[JudgePrompt]] = {}
    aspects = _aspects(judge)
    for aspect in aspects:
        asked = {aspect, *({"harmlessness"} if aspect == "over_refusal" and judge.harmlessness else ())}
        for name in _names(judge, aspect, source):
            if name == "bundled":
                chosen = _distinct(_bundled(aspect))
            else:
                whole = (name, aspect == "multi_turn")
                read[whole] = read.get(whole) or _all(source, *whole)
                fitting = _distinct([p for p in read[whole] if _fits(p, aspect)])
                if not fitting:
                    raise UserError(
                        f"measure.judge.prompts: {name} has no row for {aspect}; complete it, or name another"
                    )
                # Where the set has no categories, the halves of the documents come in turn.
                chosen = stable_order(fitting, lambda p: f"{p.text}\n\n{p.follow_up}", lambda p: p.category or p.half)
            for prompt in chosen[: judge.limit]:
                known = found.get(_identity(prompt), prompt)
                found[_identity(prompt)] = replace(
                    known,
                    aspects=tuple(a for a in aspects if a in asked or a in known.aspects),
                    references=known.references or prompt.references,
                    category=known.category or prompt.category,
                    ordinary=True if aspect == "over_refusal" else known.ordinary,
                )
    return list(found.values())


def prompt_problems(judge: Judge, source: DataSource) -> list[tuple[tuple[str, ...], str]]:
    """What is wrong with the sets that are named, each problem once: (path below `measure.judge`, message).

    Nothing is read; what is looked for is that the datasets are there. The hub is asked for those that it would give.
    """
    if problems := list(dict.fromkeys(_problems(judge, source))):
        return problems
    datasets: dict[str, tuple[str, ...]] = {}
    for aspect in _aspects(judge):
        path, _ = _given(judge, aspect)
        for name in _names(judge, aspect, source):
            if name in OFFICIAL:
                datasets.setdefault(OFFICIAL[name].dataset(source), path)
            elif "/" in name:
                datasets.setdefault(name.partition(":")[0], path)
    asked = ((path, source.unreachable(dataset)) for dataset, path in datasets.items())
    return [(path, problem) for path, problem in asked if problem is not None]


def _aspects(judge: Judge) -> tuple[AspectName, ...]:
    # Only these four are fields of Judge.
    return cast("tuple[AspectName, ...]", judge.aspects())


def _given(judge: Judge, aspect: AspectName) -> tuple[tuple[str, ...], list[str]]:
    """Where the aspect's sets are named, and their names as they stand there."""
    if isinstance(judge.prompts, dict):
        return ("prompts", aspect), judge.prompts.get(aspect, ["bundled"])
    return ("prompts",), ["bundled" if judge.prompts is None else judge.prompts]


def _names(judge: Judge, aspect: AspectName, source: DataSource) -> list[str]:
    """The sets of an aspect, `official` spelled out; it is the bundled set where data is bundled."""
    fitting = [name for name, one in OFFICIAL.items() if aspect in one.made_for]
    official = ["bundled"] if source.name == "bundled" else fitting
    _, given = _given(judge, aspect)
    return list(dict.fromkeys(n for name in given for n in (official if name == "official" else [name])))


def _problems(judge: Judge, source: DataSource) -> Iterator[tuple[tuple[str, ...], str]]:
    for aspect in _aspects(judge):
        path, given = _given(judge, aspect)
        if not given:
            yield path, f"no set is named; leave {aspect} out for the bundled one"
        for name in _names(judge, aspect, source):
            if (problem := _problem(name, aspect, source)) is not None:
                yield path, problem


def _problem(name: str, aspect: AspectName, source: DataSource) -> str | None:
    """Why this set cannot be asked for the aspect, or is not there; None where it can."""
    if name == "bundled" or (name == "prompts" and aspect != "multi_turn"):
        return None
    if name in OFFICIAL:
        one = OFFICIAL[name]
        if aspect not in one.aspects:
            fitting = ", ".join(n for n, o in OFFICIAL.items() if aspect in o.aspects)
            return (
                f"{name} holds no prompts for {aspect}, but for {', '.join(one.aspects)}; for {aspect} name bundled, "
                f"{fitting} or a dataset (prompts may be a mapping: aspect → list of sets)"
            )
        if source.name == "bundled":
            return (
                f"{name} is not bundled; use --data hub or a mirror folder (prompts: official would take it from "
                "there, and the bundled prompts where data is bundled)"
            )
        missing = one.lacks(source)
        return missing and f"{name}: {missing}, or name for each aspect the sets that are there (bundled always is)"
    if name.partition(":")[0].count("/") != 1:
        return (
            f"unknown set {name!r}{suggestion(name, ('bundled', 'official', *OFFICIAL))}, or a dataset of prompts "
            "<org>/<dataset>[:config[:split]]"
        )
    return source.lacks(name.partition(":")[0])


def _fits(prompt: JudgePrompt, aspect: AspectName) -> bool:
    # XSTest holds both kinds: ordinary prompts are no test of harmlessness, unsafe ones none of over-refusal.
    return prompt.ordinary is not (aspect == "harmlessness")


def _identity(prompt: JudgePrompt) -> object:
    return prompt.chat, prompt.follow_up


def _distinct(prompts: list[JudgePrompt]) -> list[JudgePrompt]:
    found: dict[object, JudgePrompt] = {}
    for prompt in prompts:
        found.setdefault(_identity(prompt), prompt)
    return list(found.values())


def _all(source: DataSource, name: str, turns: bool) -> list[JudgePrompt]:
    """Every prompt of a set; with `turns`, a dataset of one's own is read as conversations."""
    if name in OFFICIAL:
        return OFFICIAL[name].prompts(source)
    if turns:
        return each_row(read_rows(source, name), name, conversation)
    rows, _ = load_training_set(name, "prompts", source, split="test")
    return each_row(rows, name, _chat)


def _chat(row: Row) -> JudgePrompt:
    turns = cast("list[dict[str, str]]", row["prompt"])
    chat = tuple((turn["role"], text_in(turn, "content")) for turn in turns)
    if chat[-1][0] != "user":
        raise ValueError(f"the last turn of the prompt is by {chat[-1][0][:40]!r}; expected the user")
    return JudgePrompt(chat, text_of_chat(chat), ())


def _bundled(aspect: AspectName) -> list[JudgePrompt]:
    name = f"local/judge_prompts:{aspect}"
    lines = (_BUNDLED / f"{aspect}.jsonl").read_text(encoding="utf-8").splitlines()

    def read(row: Row) -> JudgePrompt:
        if aspect == "multi_turn":
            return conversation(row)
        text = text_in(row, "prompt")
        category = text_in(row, "category") if "category" in row else None
        return JudgePrompt((("user", text),), text, (), category=category, ordinary=_ORDINARY.get(aspect))

    return each_row([json.loads(line) for line in lines], name, read)
