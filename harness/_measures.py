"""What a suite measures, and which objectives can be made of it."""

import operator
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness._spaces import suggestion
from harness.keys import content_key

__all__ = [
    "Constraint",
    "Direction",
    "Endpoint",
    "Gold",
    "Judge",
    "Measure",
    "Pairwise",
    "Profile",
    "Quality",
    "Speaker",
    "Strict",
    "Task",
    "objective_problem",
]

Direction = Literal["maximize", "minimize"]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
Limit = Annotated[int, Field(ge=1)]
_DOMAIN_LIMIT = 64


class Strict(BaseModel):
    """Base of the suite's parts: unknown keys refused, no value converted from another type, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Task(Strict):
    """One lm-eval task, run as its own definition says, but for what stands here."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="examples before each question; null: what the task says (MMLU and HellaSwag say nothing: 0)",
    )
    limit: Limit | None = Field(
        default=None,
        description="documents of each (sub)task, before they are halved for tuning and final figures; null: all",
    )
    max_gen_toks: Limit | None = Field(default=None, description="tokens generated at most; null: what the task says")


class Gold(Strict):
    """Sampled answers to prompts with checkable constraints, scored by the gold reward (harness.gold)."""

    dataset: str = Field(default="prompts", min_length=1, description="prompts with a column constraints")
    limit: Limit | None = Field(default=64, description="prompts, before they are halved; null: all")
    max_new_tokens: Limit = Field(default=64, description="tokens of an answer at most")
    temperature: float = Field(default=1.0, ge=0, description="sampling temperature; 0 is greedy")
    batch_size: Limit = Field(default=16, description="prompts answered together")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the sampling")


class Endpoint(Strict):
    """A judge behind an OpenAI-compatible endpoint; its key comes from the environment, never from here."""

    endpoint: str = Field(
        pattern=r"^https?://[^@\s]+$", description="base URL, with its version: https://api.openai.com/v1"
    )
    model: str = Field(min_length=1, description="the model's name there")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]+$")] | None = Field(
        default=None, description="how reports call it; null: the model's name"
    )
    key_env: str = Field(
        default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="environment variable with the key"
    )
    probabilities: bool = Field(
        default=False, description="rate by the probabilities of the rating tokens (logprobs) instead of by words"
    )
    temperature: float = Field(default=0.0, ge=0, description="sampling temperature of its words; 0 is greedy")
    max_tokens: Limit = Field(default=256, description="tokens of its reply at most")
    concurrency: Limit = Field(default=4, description="requests under way at once")
    timeout_s: float = Field(default=60.0, gt=0, description="seconds after which a request counts as lost")
    retries: Annotated[int, Field(ge=0)] = Field(
        default=6, description="times a request is made again after 429, 5xx, a timeout or a broken connection"
    )
    input_price: float = Field(default=0.0, ge=0, description="price of a million tokens read, in any currency")
    output_price: float = Field(default=0.0, ge=0, description="price of a million tokens written")
    max_cost: float | None = Field(
        default=None, gt=0, description="what this judge may cost in this results folder in all; null: no bound"
    )

    @property
    def label(self) -> str:
        """How reports call it."""
        return self.name or self.model

    def identity(self) -> dict[str, object]:
        """What decides its votes."""
        return self.model_dump(include={"endpoint", "model", "probabilities", "temperature", "max_tokens"})

    @property
    def key(self) -> str:
        """The content key of its identity."""
        return content_key("endpoint", **self.identity())


class Speaker(Strict):
    """A model here that judges in words: it says why, and its verdict is read from its last line."""

    local: str = Field(min_length=1, description="base, self, a recipe, or a model")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]+$")] | None = Field(
        default=None, description="how reports call it; null: as local"
    )
    max_tokens: Limit = Field(default=256, description="tokens of its reply at most")

    @property
    def label(self) -> str:
        """How reports call it."""
        return self.name or self.local

    def identity(self) -> dict[str, object]:
        """What decides its votes."""
        return self.model_dump(include={"local", "max_tokens"})


class Quality(Strict):
    """How good each judge is, measured once for each and shown beside every figure it made."""

    pairs: str = Field(
        default="preferences",
        min_length=1,
        description="pairs with a known order: the bundled ones (by the gold reward), or a dataset of kind preferences",
    )
    limit: Limit | None = Field(default=24, description="pairs; null: all")
    injections: bool = Field(default=True, description="ask it to judge answers that tell it how to vote")


class Pairwise(Strict):
    """Which of two models' answers is better, asked in both orders; ties allowed."""

    against: str = Field(default="base", min_length=1, description="the recipe that win rates are against")
    round_robin: bool = Field(default=True, description="every pair of recipes, for Bradley-Terry; else the baseline's")
    limit: Limit | None = Field(default=None, description="final prompts of each pair; null: all that were answered")


class Judge(Strict):
    """Answers to prompts, rated by models: by the expectation over the rating tokens where there are probabilities."""

    model: str | Endpoint | Speaker = Field(
        default="base",
        description="who judges: base (the untouched base model), self (the model under test), a recipe, a model, or "
        "an endpoint; by probabilities, or in words ({local: base})",
    )
    panel: list[str | Endpoint | Speaker] = Field(default=[], description="several judges, in place of model")
    helpfulness: bool = Field(default=True, description="rate helpfulness from 1 to 10")
    harmlessness: bool = Field(default=True, description="rate harmlessness, yes or no")
    over_refusal: bool = Field(
        default=False, description="whether ordinary prompts that sound dangerous are refused; harmlessness too"
    )
    multi_turn: bool = Field(
        default=False, description="rate two-turn conversations from 1 to 10, with a reference where there is one"
    )
    limit: Limit | None = Field(default=32, description="prompts of each set, before they are halved; null: all")
    max_new_tokens: Limit = Field(default=64, description="tokens of an answer at most")
    prompts: str | dict[str, list[str]] | None = Field(
        default=None,
        description="null: the bundled prompts; official: AlpacaEval, AdvBench, SimpleSafetyTests, XSTest and MT-Bench "
        "from the suite's data; a dataset of kind prompts; or for each aspect a list of any of these",
    )
    pairwise: Pairwise | None = Field(default=None, description="compare answers in pairs too; null: no")
    quality: Quality | None = Field(default=Quality(), description="how good the judges are; null: not measured")
    cost_per_vote: float | None = Field(
        default=None, gt=0, description="what one vote costs, in any currency, for budget.judge_cost; null: nothing"
    )

    def identity(self) -> dict[str, object]:
        """What decides its figures: how endpoints are asked, not how often, how fast and for how much."""
        named = [j if isinstance(j, str) else {"name": j.label, **j.identity()} for j in self.judges]
        plain = self.model_dump(mode="json", exclude={"model", "panel"})
        return {**plain, "judges": named}

    @property
    def judges(self) -> tuple[str | Endpoint | Speaker, ...]:
        """Who judges, in order."""
        return tuple(self.panel) or (self.model,)

    @property
    def models(self) -> tuple[str | None, ...]:
        """The model that each judge is, as the suite names it; None behind an endpoint."""
        names = [j.local if isinstance(j, Speaker) else j for j in self.judges]
        return tuple(name if isinstance(name, str) else None for name in names)

    @property
    def priced(self) -> bool:
        """Whether it is known what a vote costs."""
        prices = [j.input_price + j.output_price for j in self.judges if isinstance(j, Endpoint)]
        return self.cost_per_vote is not None or any(prices)

    def aspects(self) -> tuple[str, ...]:
        """What is rated, in the order of reports."""
        return tuple(a for a in ("helpfulness", "harmlessness", "over_refusal", "multi_turn") if getattr(self, a))

    def problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What is wrong in itself: path below `judge`, message."""
        if not self.aspects():
            yield (), "nothing is judged; set helpfulness, harmlessness, over_refusal or multi_turn to true"
        if self.panel and "model" in self.model_fields_set:
            yield ("model",), "panel names the judges already; leave one of the two out"
        names = [judge if isinstance(judge, str) else judge.label for judge in self.judges]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield ("panel",), f"two judges are called {twice[0]}; an endpoint may be given another name"
        if self.pairwise is not None and set(self.models) == {"self"}:
            yield ("pairwise",), "a pair has two models under test; self cannot judge it: name another judge"
        if isinstance(self.prompts, dict) and (wrong := [a for a in self.prompts if a not in self.aspects()]):
            yield ("prompts", wrong[0]), f"{wrong[0]} is not judged{suggestion(wrong[0], self.aspects())}"


class Profile(Strict):
    """Latency and memory at fixed prompt and output lengths, on every target, in a fresh process."""

    prompt_tokens: Limit = Field(default=256, description="tokens of the prompt")
    new_tokens: Limit = Field(default=64, description="tokens generated")
    batch_sizes: list[Limit] = Field(default=[1], min_length=1, description="batch sizes; the first gives latency_ms")
    repeats: Limit = Field(default=10, description="measured repeats of each batch size")
    warmup: Annotated[int, Field(ge=0)] = Field(default=2, description="repeats before the measured ones, discarded")


class Measure(Strict):
    """What is measured of each model; at least one of tasks, gold, judge, profile, domains."""

    tasks: dict[TaskName, Task] = Field(
        default={}, description="lm-eval task → how it is run; {} is its own definition"
    )
    gold: Gold | None = Field(
        default=None, description="the verifiable gold reward, the reward model's and the KL to base"
    )
    judge: Judge | None = Field(default=None, description="a model's ratings of helpfulness and harmlessness")
    profile: Profile | None = Field(default=None, description="latency and memory on every target")
    domains: dict[DomainName, Annotated[str, Field(min_length=1)]] = Field(
        default={},
        description="domain → held-out rows of kind instructions (a bundled name, or <org>/<dataset>:config:split): "
        "loss on their answers, after each step of a recipe too, for the forgetting matrix",
        exclude_if=operator.not_,
    )
    domain_limit: Limit | None = Field(
        default=_DOMAIN_LIMIT,
        description="documents of each domain, before they are halved; null: all",
        exclude_if=lambda limit: bool(limit == _DOMAIN_LIMIT),
    )
    quality_target: str | None = Field(
        default=None, description="name of the target that tasks, gold and judge run on; null: the first target"
    )
    noise_floor: bool = Field(
        default=False,
        description="measure the base model's quality a second time, in other batches and with other random numbers: "
        "what changes then, re-measuring alone changes. Shown beside differences; decides no score, so it is free to "
        "change",
    )
    every_numerics: bool = Field(
        default=False,
        description="measure the quality of the chosen models once for each distinct numerics (device kind, dtype, "
        "backend, attention) among the targets; tuning goes by the quality target all the same",
    )
    quality_gate: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="a speed or a size counts only for a model that keeps this share of the reference's quality (the "
        "base model on the quality target), as in MLPerf Inference",
    )

    def default_objectives(self) -> dict[str, Direction]:
        """What is optimised when the suite does not say: the first of gold reward, score, a rating, loss, latency."""
        if self.gold is not None:
            return {"gold_reward": "maximize"}
        if self.tasks:
            return {"score": "maximize"}
        if self.judge is not None:
            # Nothing judged is refused elsewhere.
            first = next(iter(self.judge.aspects()), "helpfulness")
            return {first: "minimize" if first == "over_refusal" else "maximize"}
        if self.domains:
            return {"domain_loss": "minimize"}
        return {"latency_ms": "minimize"}

    def problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What is wrong in itself: path below `measure`, message."""
        quality = bool(self.tasks or self.domains or self.gold is not None or self.judge is not None)
        if not quality and self.profile is None:
            yield (), "nothing is measured; give at least one of tasks, gold, judge, profile, domains"
        if self.noise_floor and not quality:
            known = "tasks, gold, judge, domains"
            yield ("noise_floor",), f"only quality is measured a second time; give at least one of {known}"
        if not self.domains and self.domain_limit != _DOMAIN_LIMIT:
            yield ("domain_limit",), "there are no domains that it could limit; name them in domains"
        if self.judge is not None:
            yield from ((("judge", *path), message) for path, message in self.judge.problems())
        if self.profile is not None and len(set(self.profile.batch_sizes)) < len(self.profile.batch_sizes):
            yield ("profile", "batch_sizes"), "the same batch size stands here twice"


class Constraint(Strict):
    """A bound that a trial must keep to be chosen."""

    min: float | None = Field(default=None, description="the smallest value allowed")
    max: float | None = Field(default=None, description="the largest value allowed")


_NEEDS = {
    "domain_loss": "domains",
    "gold_reward": "gold",
    "kl": "gold",
    "rm_reward": "gold",
    "score": "tasks",
    "helpfulness": "judge",
    "harmlessness": "judge",
    "over_refusal": "judge",
    "multi_turn": "judge",
    "latency_ms": "profile",
    "peak_memory_mb": "profile",
    "weight_mb": "profile",
}


def objective_problem(name: str, measure: Measure, rewarded: Mapping[str, bool]) -> str | None:
    """Why an objective or constraint of this name cannot be had from these measures, or None.

    Args:
        rewarded: recipe → whether it makes a reward model.
    """
    task, dot, metric = name.rpartition(".")
    if task == "domain" and metric:
        if metric in measure.domains:
            return None
        return f"no domain {metric} is measured{suggestion(metric, measure.domains)}"
    if dot and metric:
        if task in measure.tasks:
            return None
        return f"no task {task} is measured{suggestion(task, measure.tasks)}"
    if name not in _NEEDS:
        return f"unknown objective{suggestion(name, _NEEDS)}, or <task>.<metric> or domain.<domain>"
    need = _NEEDS[name]
    if not getattr(measure, need) or (need == "judge" and not getattr(measure.judge, name)):
        return f"{name} needs measure.{need}{'.' + name + ': true' if need == 'judge' and measure.judge else ''}"
    if name == "rm_reward" and (without := [recipe for recipe, has in rewarded.items() if not has]):
        return f"every recipe needs a reward model for this; without one: {', '.join(without)}"
    return None
