"""What is wrong between the parts of a suite whose parts are each right by themselves."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness._measures import objective_problem
from harness._recipes import NAME_PATTERN
from harness._spaces import quoted, suggestion
from harness.method import TORCH_BACKENDS, find_method
from harness.models import BUNDLED_MODELS
from harness.yamlmarks import Problem

if TYPE_CHECKING:
    from harness._suite import Suite

__all__ = ["SuiteProblemsError", "cross_problems"]


class SuiteProblemsError(ValueError):
    """What is wrong across a suite, with the place of each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, p.path))}: {p.message}" for p in problems))
        self.problems = problems


def cross_problems(suite: "Suite", own: Mapping[str, object]) -> Iterator[Problem]:
    """What is wrong between the parts of a suite; `own` are the recipes that could be read."""
    for key, items in (
        ("models", suite.models),
        ("seeds", suite.seeds),
        ("targets", [target.name for target in suite.targets]),
    ):
        for index, item in enumerate(items):
            if item in items[:index]:
                yield Problem((key, index), f"{quoted(item)} stands here twice")
    for path, wrong in suite.measure.problems():
        yield Problem(("measure", *path), wrong)
    names = [target.name for target in suite.targets]
    for index, target in enumerate(names):
        if not re.fullmatch(NAME_PATTERN, target):
            wrong = f"expected a name of letters, digits, _ . -, got {quoted(target)}"
            yield Problem(("targets", index, "name"), wrong)
    yield from _target_problems(suite, own, names)
    yield from _judge_problems(suite, own)
    judge = suite.measure.judge
    if suite.budget.judge_cost is not None and (judge is None or not judge.priced):
        wrong = "no vote has a price; set measure.judge.cost_per_vote, or an endpoint's prices, in the same unit"
        yield Problem(("budget", "judge_cost"), wrong)
    yield from _stopping_problems(suite)
    # An unread recipe has no steps; what is wrong with it is said once.
    rewarded = {r: any(find_method(s.method).produces == "reward" for s in suite.steps(r)) for r in own}
    # Those that follow from the measures are wrong only where a measure is, which is said there.
    chosen = suite.objectives if "objectives" in suite.model_fields_set else {}
    for key, given in (("objectives", chosen), ("constraints", suite.constraints)):
        for name in given:
            if message := objective_problem(name, suite.measure, rewarded):
                yield Problem((key, name), message, on_key=True)
    for name, bound in suite.constraints.items():
        if (bound.min is None) == (bound.max is None):
            yield Problem(("constraints", name), "expected one of {min: x} and {max: x}")


def _target_problems(suite: "Suite", own: Mapping[str, object], names: Sequence[str]) -> Iterator[Problem]:
    wanted = suite.measure.quality_target
    if wanted is not None and wanted not in names:
        yield Problem(("measure", "quality_target"), f"no target {quoted(wanted)}{suggestion(wanted, names)}")
        return
    if not suite.targets_of("base"):
        wrong = f"none runs the untouched base model; add one of backend {_listed(TORCH_BACKENDS)}"
        yield Problem(("targets",), wrong)
    elif wanted is not None and wanted not in {t.name for t in suite.targets_of("base")}:
        path = ("measure", "quality_target")
        yield Problem(path, f"{wanted} does not run the untouched base model, by which everything is compared")
    used = set[str]()
    for recipe in own:
        used |= (backends := suite.backends(recipe))
        if not suite.targets_of(recipe):
            message = f"no target runs what it leaves: add one of backend {_listed(backends)}"
            yield Problem(("recipes", recipe), message, on_key=True)
    for index, target in enumerate(suite.targets):
        if target.backend not in used | TORCH_BACKENDS:
            message = f"no recipe leaves a model that backend {target.backend} runs: end one with an export"
            yield Problem(("targets", index), message)


def _stopping_problems(suite: "Suite") -> Iterator[Problem]:
    if suite.early_stopping is None or suite.early_stopping.documents is None:
        return
    of_documents = ("gold_reward", "rm_reward", "score")
    tasks = [n for n in suite.objectives if "." in n and not n.startswith("domain.")]
    if len(suite.objectives) > 1 or not set(suite.objectives) <= {*of_documents, *tasks}:
        wanted = f"a mean over documents ({', '.join(of_documents)} or <task>.<metric>)"
        wrong = f"expected a single objective that is {wanted}, got {', '.join(suite.objectives)}"
        yield Problem(("early_stopping", "documents"), wrong, on_key=True)


def _judge_problems(suite: "Suite", own: Mapping[str, object]) -> Iterator[Problem]:
    for name in suite.judges:
        if name in (taken := ("self", "base", *suite.recipes, *suite.models)):
            wrong = f"a judge needs a name of its own; {', '.join(taken)} are taken"
            yield Problem(("judges", name), wrong, on_key=True)
    judging = suite.measure.judge
    if judging is None:
        return
    known = ["self", "base", *suite.recipes, *suite.models, *BUNDLED_MODELS]
    for index, judge in enumerate(judging.models):
        if judge is None:
            continue
        path = ("measure", "judge", "panel", index) if judging.panel else ("measure", "judge", "model")
        if judge not in known and "/" not in judge and not judge.startswith((".", "~")):
            message = f"no recipe or model {quoted(judge)}{suggestion(judge, known)}"
            yield Problem(path, f"{message}; a hub id is org/name, a folder here is ./name")
        if judge in own and "eager" not in suite.backends(judge):
            yield Problem(path, f"{judge} is exported; a judge answers in torch: name the recipe it begins with")
        searched = set(judging.aspects()) & {*suite.objectives, *suite.constraints}
        if judge in suite.recipes and searched:
            message = f"{min(searched)} steers the tuning, so a recipe that is itself tuned cannot judge; use base"
            yield Problem(path, message)
    pairwise = judging.pairwise
    if pairwise is not None and pairwise.against not in (against := ["base", *own]):
        wrong = f"no recipe {quoted(pairwise.against)}{suggestion(pairwise.against, against)}"
        yield Problem(("measure", "judge", "pairwise", "against"), wrong)


def _listed(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))
