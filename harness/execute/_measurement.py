"""Making the measurements of one spec: the model is loaded once, each measurement's rows are stored when it is done.

A tuning trial's may end at a rung (`harness.rungs`); of what was measured up to there no row is stored, since half a
measurement under its key would pass for the whole.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data import DataSource, load_training_set
from harness.execute._spec import Item, JudgeSpec, MeasureSpec
from harness.folders import Folders
from harness.measure._again import pass_tokens
from harness.measure._placement import load_on
from harness.measure._requests import Requests
from harness.method import LoadedModel
from harness.models import load_model
from harness.provenance import environment
from harness.rungs import MeasureRungs, judge_documents, judge_scores, split
from harness.runtimes import holds_export, load_runtime
from harness.store import Store
from harness.suite import Endpoint, Judge, Quality, Task
from harness.targets import RUNTIMES, Target

if TYPE_CHECKING:
    from harness.measure.judge import Voter

__all__ = ["run_measurements"]

_PROFILE_LIMIT_S = 3600.0
"""A profile that takes longer than this hangs."""

Log = Callable[[int, int, Mapping[str, float]], None]
Row = dict[str, object]

_NONE: Mapping[str, object] = {}


def run_measurements(spec: MeasureSpec, results: Path, log: Log) -> None:
    """Make every measurement of the spec that the store's shards lack.

    Raises:
        MeasurementError: a measurement has no meaningful result; those before it are stored.
        HopelessError: stopped at one of the spec's rungs.
    """
    work = _Work(spec, results, log)
    counting = () if spec.rungs is None else tuple(i for i in spec.items if i.key in spec.rungs.metrics)
    if spec.rungs is not None:
        work.to_rungs(counting, spec.rungs)
    rest = [i for i in spec.items if i not in counting]
    tasks: dict[str, list[Item]] = {}
    for item in rest:
        if item.kind == "task":
            tasks.setdefault(str(item.settings["of"]), []).append(item)
    for items in tasks.values():
        work.tasks(items)
    for item in rest:
        if item.kind == "gold":
            work.gold(item)
        elif item.kind == "judge":
            work.judge(item)
        elif item.kind == "judge_check":
            work.judge_check(item)
        elif item.kind == "pairs":
            work.pairs(item)
        elif item.kind == "domain":
            work.domain(item)
        elif item.kind == "profile":
            work.profile(item)


class _Work:
    def __init__(self, spec: MeasureSpec, results: Path, log: Log) -> None:
        self.spec, self.log = spec, log
        self.folders = Folders(results)
        self.store = Store(results)
        self.target = Target.model_validate(spec.target)
        self.source = DataSource(spec.data)
        self._loaded: dict[tuple[str, str], LoadedModel] = {}

    def load(self, reference: str, head: str = "causal") -> LoadedModel:
        if (reference, head) not in self._loaded:
            if self.target.backend in RUNTIMES:
                self._loaded[reference, head] = self._load_beside_runtime(reference, head)
                return self._loaded[reference, head]
            loaded = load_on(self.folders.model(reference), self.target, "reward" if head == "reward" else "causal")
            if self.target.backend == "inductor" and head == "causal":
                import torch

                loaded.model.forward = torch.compile(loaded.model.forward, dynamic=True)
            self._loaded[reference, head] = loaded
        return self._loaded[reference, head]

    def _load_beside_runtime(self, reference: str, head: str) -> LoadedModel:
        """The model under test in its runtime; a base, a reward model or a judge of its own in torch, float32."""
        folder = self.folders.model(reference)
        if head == "causal" and (reference == self.spec.model or holds_export(folder, self.target.backend)):
            return load_runtime(folder, self.target)
        return load_model(folder, head="reward" if head == "reward" else "causal")

    def save(
        self,
        item: Item,
        table: str,
        rows: list[Row],
        seconds: float,
        *,
        asked: Requests | None = None,
        notes: Mapping[str, object] = _NONE,
    ) -> None:
        env = environment()
        # A repeat is told from the first in its own row too, not by its key alone.
        again = {"repeat": self.spec.repeat} if self.spec.repeat else {}
        measurement: Row = {
            "measurement": item.key,
            "artifact": item.artifact or self.spec.artifact,
            "target": json.dumps(self.target.numerics(), sort_keys=True),
            "kind": item.kind,
            "task": item.task,
            "settings": json.dumps({**item.settings, **notes, **again}, sort_keys=True),
            "data": self.source.label(),
            "seconds": seconds,
            "environment": env.key,
            "at": env.now(),
        }
        self.store.append_many(
            {
                "measurements": [measurement],
                table: [{"measurement": item.key, **row} for row in rows],
                "requests": [] if asked is None else [{"measurement": item.key, **asked.row()}],
                "environment_rows": [env.row()],
            }
        )

    def tick(self, done: int, total: int) -> None:
        self.log(done, total, {})

    def to_rungs(self, items: Sequence[Item], rungs: MeasureRungs) -> None:
        """The measurements that the objective is made of, first and in parts; ends with the trial where it is hopeless.

        Raises:
            HopelessError: see `harness.rungs.judge_documents`.
        """

        def look(rung: int, rows: Mapping[str, Sequence[Row]]) -> None:
            scores = {i.key: _scores(rows.get(i.task, ()), rungs.metrics[i.key]) for i in items}
            for key, known in rungs.known.items():
                documents = list(known)
                places = [place for part in split(documents, rungs.at)[: rung + 1] for place in part]
                scores[key] = {documents[place]: known[documents[place]] for place in places}
            judge_documents(rungs, rung, scores)

        if not items:
            judge_scores(rungs, rungs.known)
        # A single objective is made of tasks or of the gold measure.
        elif items[0].kind == "gold":
            self.gold(items[0], rungs.at, lambda rung, rows: look(rung, {items[0].task: rows}))
        else:
            self.tasks(items, rungs.at, look)

    def tasks(
        self,
        items: Sequence[Item],
        at: Sequence[float] = (),
        look: Callable[[int, Mapping[str, Sequence[Row]]], None] | None = None,
    ) -> None:
        from harness.measure.tasks import measure_tasks

        started = time.monotonic()
        settings = {str(i.settings["of"]): {k: v for k, v in i.settings.items() if k != "of"} for i in items}
        notes: dict[str, object] = {}
        asked_of: dict[str, Requests] = {}
        rows = measure_tasks(
            self.load(self.spec.model),
            self.source,
            {name: Task.model_validate(asked) for name, asked in settings.items()},
            self.spec.halves,
            "hf" if self.spec.scorer == "hf" else "prefix-tree",
            progress=self.tick,
            note=lambda reason: notes.update(scorer_fallback=reason),
            at=at,
            look=look,
            repeat=self.spec.repeat,
            record=asked_of.__setitem__,
        )
        seconds = (time.monotonic() - started) / len(items)
        for item in items:
            self.save(item, "samples", rows[item.task], seconds, asked=asked_of.get(item.task), notes=notes)

    def gold(
        self,
        item: Item,
        at: Sequence[float] = (),
        look: Callable[[int, Sequence[Row]], None] | None = None,
    ) -> None:
        from harness.measure.gold import measure_gold
        from harness.suite import Gold

        started = time.monotonic()
        settings = Gold.model_validate(item.settings)
        prompts, _ = load_training_set(settings.dataset, "prompts", self.source, split="test")
        told: list[Requests] = []
        rows = measure_gold(
            self.load(self.spec.model),
            prompts,
            self.load(self.spec.reward, "reward") if self.spec.reward else None,
            self.load(self.spec.base),
            settings,
            self.spec.halves,
            progress=self.tick,
            at=at,
            look=look,
            repeat=self.spec.repeat,
            record=told.append,
        )
        self.save(item, "samples", rows, time.monotonic() - started, asked=told[0] if told else None)

    def voter(self, judge: JudgeSpec) -> "Voter":
        """A judge; what it says is kept by its content, whoever asks again."""
        from harness.measure.judge import LocalVoter, SpeakingVoter, endpoint_voter

        if judge.endpoint is None:
            loaded = self.load(str(judge.model))
            tokens = pass_tokens(loaded.model, self.spec.repeat)
            if judge.words is not None:
                return SpeakingVoter(loaded, judge.name, judge.key, judge.words, tokens)
            return LocalVoter(loaded, judge.name, judge.key, tokens)
        # In a repeat for the noise floor too: an endpoint is asked anew only where the answer is another.
        return endpoint_voter(Endpoint.model_validate(judge.endpoint), self.folders.votes)

    def judge(self, item: Item) -> None:
        from harness.measure.judge import measure_judge

        started = time.monotonic()
        told: list[Requests] = []
        rows = measure_judge(
            self.load(self.spec.model),
            [self.voter(judge) for judge in self.spec.judges],
            self.source,
            Judge.model_validate(item.settings),
            self.spec.halves,
            self.tick,
            repeat=self.spec.repeat,
            record=told.append,
        )
        self.save(item, "judge_votes", rows, time.monotonic() - started, asked=told[0] if told else None)

    def judge_check(self, item: Item) -> None:
        from harness.measure.judge import measure_quality

        started = time.monotonic()
        (judge,) = (one for one in self.spec.judges if one.name == item.settings["judge"])
        quality = Quality.model_validate({k: v for k, v in item.settings.items() if k != "judge"})
        rows = measure_quality(self.voter(judge), self.source, quality, self.tick)
        self.save(item, "judge_checks", rows, time.monotonic() - started)

    def pairs(self, item: Item) -> None:
        from harness.measure.judge import measure_pairs

        started = time.monotonic()
        a, b = str(item.settings["a"]), str(item.settings["b"])
        columns = "measurement, document, half, turn, category, prompt, response"
        answers = self.store.query(f"SELECT {columns} FROM raw.judge_votes WHERE measurement IN (?, ?)", [a, b])
        of_a, of_b = ([row for row in answers.to_dicts() if row["measurement"] == key] for key in (a, b))
        limit: int | None = item.settings["limit"]
        voters = [self.voter(judge) for judge in self.spec.judges]
        rows = measure_pairs(of_a, of_b, voters, a, b, limit=limit, progress=self.tick)
        self.save(item, "pair_votes", rows, time.monotonic() - started)

    def domain(self, item: Item) -> None:
        from harness.measure.domains import domain_documents, measure_domain

        started = time.monotonic()
        rows, _ = load_training_set(str(item.settings["dataset"]), "instructions", self.source, split="test")
        documents = domain_documents(rows, item.settings["limit"])
        loaded = self.load(self.spec.model)
        found = measure_domain(loaded, documents, self.spec.halves, progress=self.tick, repeat=self.spec.repeat)
        self.save(item, "samples", found, time.monotonic() - started)

    def profile(self, item: Item) -> None:
        from harness.measure.profile import measure_profile

        started = time.monotonic()
        rows = measure_profile(self.folders.model(self.spec.model), self.target, item.settings, _PROFILE_LIMIT_S)
        self.save(item, "profile_samples", rows, time.monotonic() - started)


def _scores(rows: Sequence[Row], metric: str) -> dict[str, float]:
    return {str(row["document"]): float(str(row["score"])) for row in rows if row["metric"] == metric}
