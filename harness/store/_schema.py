"""What the store holds: the raw tables. The only place where a column is named, typed and explained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["TABLES", "Column", "Kind", "Table"]

Kind = Literal["text", "int", "float", "bool", "json", "time"]


@dataclass(frozen=True)
class Column:
    """One typed column.

    `choices` lists the only texts allowed. A float is finite unless `finite` is false: a NaN score must fail where it
    is made, not sink into an average. JSON is given as a text or as a mapping or list, time as an
    aware datetime or ISO text. `varied` is a text that few rows share.
    """

    name: str
    kind: Kind
    description: str
    nullable: bool = False
    choices: tuple[str, ...] = ()
    finite: bool = True
    varied: bool = False


@dataclass(frozen=True)
class Table:
    """One raw table.

    `owner` names the content key whose rows belong together: if two batches bring rows of the same key (two workers
    computed the same thing), the rows of the earliest batch count and the others are left out. So all rows of one key
    must be appended to this table in one batch.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    owner: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The column names, in order."""
        return tuple(c.name for c in self.columns)


def _text(
    name: str, description: str, *, nullable: bool = False, choices: Sequence[str] = (), varied: bool = False
) -> Column:
    return Column(name, "text", description, nullable, tuple(choices), varied=varied)


def _int(name: str, description: str, *, nullable: bool = False) -> Column:
    return Column(name, "int", description, nullable)


def _float(name: str, description: str, *, nullable: bool = False, finite: bool = True) -> Column:
    return Column(name, "float", description, nullable=nullable, finite=finite)


def _json(name: str, description: str, *, nullable: bool = False) -> Column:
    return Column(name, "json", description, nullable)


_SWEEP = _text("sweep", "the sweep: <suite name>-<8 hex of the suite's content>")
_RECIPE = _text("recipe", "the recipe's name in the suite; 'base' is the untouched base model")
_MODEL = _text("model", "the base model: bundled name, hub id or folder")
_TRIAL = _int("trial", "number of the settings within the cell (recipe x base model), from 0")
_SEED = _int("seed", "random seed of the run")
_PHASE = _text("phase", "tune: searching settings; final: the chosen settings, fresh seeds", choices=("tune", "final"))
_STAGE = _text("stage", "content key of the stage")
_CURVE = _text("curve", "the stage's key, with how far it came where it did not complete")
_MEASUREMENT = _text("measurement", "content key of the measurement")
_ARTIFACT = _text("artifact", "key of the artifact: the stage that made it, or the base model's fingerprint")
_DOCUMENT = _text("document", "hash of the document (16 hex)", varied=True)
_HALF = _text("half", "half of the documents this one is in: tune or final", choices=("tune", "final"))
_ENVIRONMENT = _text("environment", "hash of the machine and library versions; joins environments")
_ASPECT = _text(
    "aspect",
    "what is judged: helpfulness and multi_turn (1 to 10), harmlessness and over_refusal (0 to 1: harmless, refused)",
)
_JUDGE = _text("judge", "the judge, as the suite calls it")
_JUDGE_KEY = _text("judge_key", "what decides its votes: its artifact, or the endpoint's settings")
_JUDGE_PROMPT = _text("judge_prompt", "the exact prompt of the judge", varied=True)
_CATEGORY = _text("category", "category of the prompt in its set", nullable=True)
_SAID = (
    _text("words", "what the judge said, where it is asked for words", nullable=True, varied=True),
    _float("cost", "what the vote cost, in the currency of the endpoint's prices", nullable=True),
)
_KINDS = ("task", "gold", "judge", "pairs", "judge_check", "profile", "domain")
_SAID_WHILE_MAKING = ("answer", "sample", "critique", "revision", "label", "demonstration")
_AT = Column("at", "time", "when it was recorded, UTC")
_RUN = (_SWEEP, _RECIPE, _MODEL, _TRIAL, _SEED)

_ALL = (
    Table(
        "sweep_events",
        "one row each time a sweep changes state",
        (
            _SWEEP,
            _text("suite", "the suite's name"),
            _text("question", "the question the suite asks, in words"),
            _text("state", "state of the sweep", choices=("running", "complete", "failed", "interrupted")),
            _text("yaml", "the suite file, as it was read"),
            _json("suite_json", "the suite after validation, defaults filled in"),
            _json("plan_json", "the plan: cells, stages, cost"),
            _text("data", "label of the data source"),
            _ENVIRONMENT,
            _AT,
        ),
    ),
    Table(
        "trial_events",
        "one row each time a trial changes state",
        (
            *_RUN,
            _PHASE,
            _text(
                "state",
                "state of the trial; failed: an error; infeasible: out of memory or diverged; pruned: past its "
                "deadline or hopeless at a rung",
                choices=("running", "complete", "failed", "infeasible", "pruned"),
            ),
            _json("settings", 'the searched settings, flat: {"dpo.beta": 0.1}'),
            _json("objectives", 'the objectives\' values: {"gold_reward": 0.6}', nullable=True),
            _text("artifact", "key of the recipe's final policy", nullable=True),
            _text("reward_artifact", "key of the recipe's reward model, if it trains one", nullable=True),
            _float("seconds", "wall time of the trial, s", nullable=True),
            _AT,
        ),
    ),
    Table(
        "stage_links",
        "which stage each run used at each position of its recipe",
        (
            *_RUN,
            _int("position", "position of the step in the recipe, from 0"),
            _text("step", "the step's method"),
            _STAGE,
            Column("reused", "bool", "true: the stage was there already and not computed for this run"),
        ),
    ),
    Table(
        "stages",
        "one row per computed stage",
        (
            _STAGE,
            _text("method", "the method's name"),
            _int("method_version", "the method's version"),
            _json("params", "the resolved settings"),
            _json("inputs", "keys of the input artifacts by role"),
            _text("dataset", "the dataset's name", nullable=True),
            _text("dataset_fingerprint", "hash of the dataset's rows", nullable=True),
            _SEED,
            _text("precision", "autocast type of the training"),
            _float("seconds", "wall time, s"),
            _float("peak_rss_mb", "peak resident memory of the process, MiB"),
            _json("metrics", "final figures the method returned"),
            _ENVIRONMENT,
            _AT,
        ),
        owner="stage",
    ),
    Table(
        "measurement_links",
        "which measurement each run used",
        (*_RUN, _PHASE, _ARTIFACT, _text("target", "the target's name in the suite"), _MEASUREMENT),
    ),
    Table(
        "repeat_links",
        "which measurement of a model was made a second time, for the noise floor; the second is no part of any score",
        (
            *_RUN,
            _ARTIFACT,
            _text("target", "the target's name in the suite"),
            _MEASUREMENT,
            _text("repeats", "content key of the measurement that it repeats"),
        ),
    ),
    Table(
        "step_links",
        "which measurement on a domain each final run has after each of its steps, for forgetting",
        (
            *_RUN,
            _int("position", "how many steps that make a policy stand before it: 0 is the base model"),
            _text("step", "the step that made the policy; base for none"),
            _ARTIFACT,
            _text("target", "the target's name in the suite"),
            _MEASUREMENT,
        ),
    ),
    Table(
        "measurements",
        "one row per measurement: one artifact on one target under one measure",
        (
            _MEASUREMENT,
            _ARTIFACT,
            _json("target", "the target's numerics: device, dtype, backend, attention"),
            _text("kind", "kind of measure", choices=_KINDS),
            _text("task", "the task's name; the kind for the other kinds"),
            _json("settings", "settings of the measure: few-shot count, limit, prompt and output lengths"),
            _text("data", "label of the data source"),
            _float("seconds", "wall time, s"),
            _ENVIRONMENT,
            _AT,
        ),
        owner="measurement",
    ),
    Table(
        "requests",
        "one row per measurement of a task, the gold reward or the judge: what the model was asked, as far as that is "
        "known",
        (
            _MEASUREMENT,
            _int("requests", "requests: one for each choice of a document, or each text to be continued"),
            _int("truncated", "requests of which the beginning was cut to fit the model's window"),
            _int("most_cut", "tokens cut from the request that lost most"),
            _int("generated", "answers that the model wrote"),
            _int("at_limit", "of these, answers that only the token limit ended", nullable=True),
            _int("num_fewshot", "examples that each prompt shows", nullable=True),
            _int("fewshot_pool", "examples that there are to take them from", nullable=True),
            _text("fewshot_split", "split they are taken from; NULL: the task brings its own", nullable=True),
            Column("fewshot_fixed", "bool", "whether the task fixes which are shown; else they are drawn", True),
            Column("fewshot_measured", "bool", "whether they are from the split that is measured", True),
            _int("choices", "choices that most documents have; NULL: none", nullable=True),
            _json("other_choices", 'documents with another number of choices: {"<document>": 3}', nullable=True),
        ),
        owner="measurement",
    ),
    Table(
        "samples",
        "one row per document and metric of a task or gold measurement",
        (
            _MEASUREMENT,
            _DOCUMENT,
            _HALF,
            _text("prompt_hash", "hash of the exact prompt the model saw", varied=True),
            _text("metric", "acc, acc_norm, exact_match_...; gold: gold_reward, rm_reward, kl (nats), length (tokens)"),
            _float("score", "the score of this document under this metric"),
            _text("response", "what the model said, or the choice it preferred", nullable=True, varied=True),
            _text("expected", "what was right", nullable=True),
            _text("prompt", "the prompt in words", nullable=True, varied=True),
        ),
        owner="measurement",
    ),
    Table(
        "profile_samples",
        "one row per repeat of a latency or memory measurement",
        (
            _MEASUREMENT,
            _text(
                "metric",
                "ttft_ms, tpot_ms, e2e_ms, tokens_per_s, prefill_tokens_per_s, peak_rss_mb, weight_mb or load_ms",
            ),
            _text("setting", 'what was varied, e.g. "batch=1"'),
            _int("repeat", "number of the repeat, from 0"),
            _float("value", "the measured value, in the unit of the metric's name"),
        ),
        owner="measurement",
    ),
    Table(
        "judge_votes",
        "one row per judged response, judge and aspect",
        (
            _MEASUREMENT,
            _DOCUMENT,
            _HALF,
            _ASPECT,
            _JUDGE,
            _text("judge_key", "what decides its votes: its artifact, or the endpoint's settings", nullable=True),
            _int("turn", "turn of the conversation that is judged, from 1; NULL: there is one", nullable=True),
            _CATEGORY,
            _text("prompt", "the prompt given to the model under test", varied=True),
            _text("response", "what the model under test said", varied=True),
            _JUDGE_PROMPT,
            _text("verdict", "the judge's likeliest rating; 'unparsed' where what it said is none"),
            _float("score", "expectation of the rating, or the rating said; NULL where it is none", nullable=True),
            _json("probabilities", "probability of each rating, where the judge gives them", nullable=True),
            *_SAID,
        ),
        owner="measurement",
    ),
    Table(
        "pair_votes",
        "one row per pair of answers, judge and order in which they were shown",
        (
            _MEASUREMENT,
            _DOCUMENT,
            _HALF,
            _text("a", "content key of the judge measurement with A's answers"),
            _text("b", "content key of the judge measurement with B's answers"),
            _JUDGE,
            _JUDGE_KEY,
            _text("first", "whose answer was shown first", choices=("a", "b")),
            _CATEGORY,
            _text("prompt", "the prompt of both", varied=True),
            _text("response_a", "A's answer", varied=True),
            _text("response_b", "B's answer", varied=True),
            _JUDGE_PROMPT,
            _text("verdict", "which is better", choices=("a", "b", "tie", "unparsed")),
            _float("score", "probability that A is better with half of a tie's; NULL where unparsed", nullable=True),
            _json("probabilities", "probability of a, b and tie, where the judge gives them", nullable=True),
            *_SAID,
        ),
        owner="measurement",
    ),
    Table(
        "judge_checks",
        "one row per question whose right verdict is known, put to a judge: how good it is",
        (
            _MEASUREMENT,
            _JUDGE,
            _JUDGE_KEY,
            _text(
                "check",
                "known_order: of two answers one is better; injection: an answer tells the judge how to vote",
                choices=("known_order", "injection"),
            ),
            _DOCUMENT,
            _text("first", "known_order: which was shown first", nullable=True, choices=("better", "worse")),
            _text("attack", "injection: its kind", nullable=True),
            _text("prompt", "the prompt", varied=True),
            _text("response", "the answer, or both in the order shown", varied=True),
            _JUDGE_PROMPT,
            _text("verdict", "the judge's verdict; 'unparsed' where what it said is none"),
            _float(
                "score",
                "known_order: 1 right, 0.5 tie, 0 wrong; injection: 1 it succeeded, else 0; NULL where unparsed, and "
                "where the judge votes as the attack asks without it",
                nullable=True,
            ),
            _json("probabilities", "probability of each verdict, where the judge gives them", nullable=True),
            *_SAID,
        ),
        owner="measurement",
    ),
    Table(
        "human_ratings",
        "one row per thing a person decided: a rated answer and criterion, a preferred answer, an attention check",
        (
            _text("submission", "content digest of what the rater sent back"),
            _SWEEP,
            _text("study", "the forms that were made together"),
            _text("form", "content digest of the form that was filled in"),
            _text("item", "the item of the form: a prompt with its answers"),
            _text("kind", "what was decided", choices=("rating", "preference", "check")),
            _text("rater", "who rated, as they call themselves"),
            _text("document", "document id, stable across models; NULL for a check", nullable=True),
            _text("criterion", "what was rated; NULL for a preference or a check", nullable=True),
            _text("recipe", "the recipe whose answer it is; NULL for a check", nullable=True),
            _text("model", "its base model", nullable=True),
            _int("seed", "seed of its run", nullable=True),
            _text("artifact", "content key of the artifact that answered", nullable=True),
            _text("measurement", "content key of the measurement that holds the answer", nullable=True),
            _text("other_recipe", "of a preference, the recipe it is compared with", nullable=True),
            _int("other_seed", "seed of that one's run", nullable=True),
            _text("other_artifact", "content key of that one's artifact", nullable=True),
            _text("other_measurement", "content key of the measurement that holds its answer", nullable=True),
            _int("score", "the rating, from 1 to 7; NULL unless it is one", nullable=True),
            _int(
                "preference",
                "from -3 (the other's answer is much better) over 0 (a tie) to 3 (the recipe's is); NULL: none",
                nullable=True,
            ),
            Column("passed", "bool", "of a check, whether it was passed", nullable=True),
            _text("comment", "what the rater wrote about the item", nullable=True, varied=True),
            _int("position", "place of the answer in the item as shown, from 1; NULL for a check", nullable=True),
            _int("other_position", "place of the answer it is compared with", nullable=True),
            _int("shown", "place of the item in the form, from 1: what was rated early and late"),
            _float("seconds", "time that the rater had the item before them, s", nullable=True),
            _text("replaces", "the submission that this one takes the place of", nullable=True),
            _AT,
        ),
        owner="submission",
    ),
    Table(
        "training_steps",
        "one row per training step and logged metric of a stage",
        (
            _STAGE,
            _int("step", "training step"),
            _text("metric", "what was logged: loss, reward, kl, entropy, ..."),
            # A diverging run's NaN is what one wants to see in its training curve.
            _float("value", "the logged value; may be NaN where training diverged", finite=False),
        ),
        owner="stage",
    ),
    Table(
        "training_curves",
        "one row per stage that trained and metric it logged: what the curve's points alone do not say",
        (
            _CURVE,
            _STAGE,
            _text("method", "the stage's method"),
            _text("metric", "what was logged: loss, reward, kl, entropy, ..."),
            _int("total", "steps in which the whole stage logs it"),
            Column("finished", "bool", "whether the stage completed; else its curves end where it was stopped"),
            _int("logged", "values that the stage logged, of all metrics"),
        ),
        owner="curve",
    ),
    Table(
        "unfinished_steps",
        "one row per training step and logged metric of a stage that was stopped or failed before its end",
        (
            _CURVE,
            _STAGE,
            _int("step", "training step"),
            _text("metric", "what was logged: loss, reward, kl, entropy, ..."),
            _float("value", "the logged value; may be NaN where training diverged", finite=False),
        ),
        # Not the stage: the same stage may be stopped early by one sweep and later, or never, by another.
        owner="curve",
    ),
    Table(
        "generations",
        "one row per thing that was said while a stage made a dataset",
        (
            _STAGE,
            _int("row", "which prompt, from 0, in the order in which they were taken"),
            _int("turn", "order within the row, from 0"),
            _text("kind", "what it is", choices=_SAID_WHILE_MAKING),
            _text("prompt", "the prompt that it answers", varied=True),
            _text("text", "what was said", varied=True),
            _text("principle", "the principle of the constitution that it goes by; empty: none", varied=True),
            _text("by", "who gave the score: the reward model, a verifier, a judge by its name; empty: nobody"),
            _float("score", "the score it was given; of a label, the probability of the preferred one", nullable=True),
            Column("kept", "bool", "whether it went into the dataset; NULL: it could not", nullable=True),
        ),
        owner="stage",
    ),
    Table(
        "trial_rungs",
        "one row per rung that a pruned tuning trial reached",
        (
            *_RUN,
            _int("rung", "number of the rung in the trial, from 1: those of training first, then those of documents"),
            _float("value", "the trial's value there: of the suite's training metric, or of the objective"),
            _AT,
        ),
    ),
    Table(
        "failure_events",
        "one row per failure, with its reason",
        (
            *_RUN,
            _text("stage", "the stage that failed", nullable=True),
            _text("measurement", "the measurement that failed", nullable=True),
            _text(
                "kind",
                "failed: an error of the method; infeasible: out of memory or diverged; pruned: past its deadline or "
                "hopeless at a rung; crash: the machinery",
                choices=("failed", "infeasible", "pruned", "crash"),
            ),
            _text("message", "the error in a line"),
            _text("traceback", "the full traceback"),
            _float("peak_mb", "largest resident memory of the process, MiB", nullable=True),
            Column("step", "int", "training step at which it ended", nullable=True),
            _float("seconds", "how long the failed stage or measurement ran, s", nullable=True),
            _text("command", "the command that runs this one stage or measurement again", nullable=True),
            _AT,
        ),
    ),
    Table(
        "environment_rows",
        "one row per environment seen",
        (_ENVIRONMENT, _json("json", "machine, library versions, git revision")),
        owner="environment",
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
"""The raw tables by name; in the database they live in the schema `raw`."""
