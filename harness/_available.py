"""Which targets of a suite this machine lacks, and the suite without them."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import PrivateAttr

from harness.suite import Suite
from harness.targets import Target, target_problem

__all__ = ["PartialSuite", "missing_targets", "refusals"]

_HINT = "; or leave such targets out of this run: --skip-unavailable"


def missing_targets(suite: Suite) -> dict[str, str]:
    """Name → why this machine cannot run it, for each target of the suite of which that is so."""
    return {t.name: problem for t in suite.targets if (problem := target_problem(t))}


def refusals(suite: Suite, missing: Mapping[str, str], *, skip: bool) -> list[str]:
    """Why the suite cannot be run on this machine for want of targets: `file:line:column: …` each, empty if it can.

    Args:
        missing: as `missing_targets` found them.
        skip: missing targets are to be left out. They cannot be where the suite names one of them as the target of
            quality, which every comparison goes by, or where none is left.
    """
    indices = [i for i, t in enumerate(suite.targets) if t.name in missing]
    if not skip:
        return [f"{_place(suite, i)}: {_what(suite, missing, i)}{_HINT}" for i in indices]
    # The untouched base model is what everything is compared with.
    if all(t.name in missing for t in suite.targets_of("base")):
        none = "no other target is left for the base model"
        return [f"{_place(suite, i)}: {_what(suite, missing, i)}; {none}" for i in indices]
    named = suite.measure.quality_target
    return [
        f"{_place(suite, i)}: {_what(suite, missing, i)}; the quality target, by which everything is compared, cannot "
        "be skipped: name another with --set measure.quality_target=NAME"
        for i in indices
        if suite.targets[i].name == named
    ]


def _what(suite: Suite, missing: Mapping[str, str], index: int) -> str:
    name = suite.targets[index].name
    return f"targets.{index}: this machine cannot run {name}: {missing[name]}"


def _place(suite: Suite, index: int) -> str:
    return suite.place("targets", index)


class PartialSuite(Suite):
    """A suite without the targets that this machine lacks, under the identity of the whole.

    So it continues the whole suite's sweep: the same trials with the same settings, and on a machine that has the
    targets the same command fills the gaps. Only where the suite names no quality target and its first target, which
    is meant then, is missing, the next one takes its place: other numbers decide, and so it is another sweep.
    """

    _whole: Suite = PrivateAttr()
    _skipped: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, suite: Suite, missing: Mapping[str, str]) -> Self:
        """The suite without its missing targets (name → reason); at least one that runs the base model must be left."""
        left = [t for t in suite.targets if t.name not in missing]
        if suite.quality_target.name in missing and suite.measure.quality_target is None:
            first = next(t for t in suite.targets_of("base") if t.name not in missing)
            measure = suite.measure.model_copy(update={"quality_target": first.name})
            suite = suite.model_copy(update={"measure": measure})
        return cls._copied(suite, left, missing)

    @classmethod
    def _copied(cls, suite: Suite, left: Sequence[Target], missing: Mapping[str, str]) -> Self:
        # Constructed and not validated: it was, and the objectives' default would be made anew.
        fields: dict[str, Any] = {**dict(suite), "targets": list(left)}
        partial = cls.model_construct(**fields)
        for name in Suite.__private_attributes__:
            setattr(partial, name, getattr(suite, name))
        partial._whole, partial._skipped = suite, dict(missing)
        return partial

    @property
    def skipped(self) -> Mapping[str, str]:
        """Target that was left out → why."""
        return self._skipped

    def identity(self) -> dict[str, object]:
        """The whole suite's."""
        return self._whole.identity()
