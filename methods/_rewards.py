"""What a response is worth, whoever says so: a reward model, a verifier or a judge, behind one interface.

Online methods and those that make data ask a `Rewarder`; which one it is stands in the setting `reward`.
"""

import functools
import hashlib
import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import Field, model_validator

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, Judge, LoadedModel, Params, Role, Turns
from methods._verifiers import VERIFIERS, Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["REWARD_FIXED", "Response", "RewardParams", "Rewarder", "make_rewarder", "reward_needs", "reward_reads"]

REWARD_FIXED = frozenset({"reward", "judge"})
"""The settings that decide which models a step needs, for `Method.fixed`."""

Response = str | Sequence[int]
"""A text, or the very tokens that were sampled: with the end token where the response has ended."""
Row = Mapping[str, Any]

_HELP = "model (a step `reward_model` before it), judge, {}, or package.module:function".format(", ".join(VERIFIERS))
_AT_ONCE = 32
"""Texts that the reward model reads in one forward pass."""


class RewardParams(Params):
    """Settings that say what a response is worth."""

    reward: str = Field(
        "model",
        description="what scores a response. model: the recipe's reward model; judge: a model asked how helpful it is, "
        "1 to 10; constraints: the share of the row's constraints that it meets; final_answer: 1 where its last number "
        "is that of the row's `answer`; package.module:function: a function of yours, (prompt turns, response, row) -> "
        "float",
    )
    judge: str | None = Field(
        None, description="who judges, with reward judge only: self, base, a recipe, or a model of the suite"
    )

    @model_validator(mode="after")
    def _judge_is_asked(self) -> Self:
        if self.reward == "judge" and self.judge is None:
            raise ValueError("reward judge needs a judge: set judge to self, base, a recipe or a model")
        if self.reward != "judge" and self.judge is not None:
            raise ValueError(f"judge is not asked with reward {self.reward}; leave it out, or set reward: judge")
        if self.reward not in ("model", "judge", *VERIFIERS) and ":" not in self.reward:
            raise ValueError(f"reward {self.reward!r} is not known; expected {_HELP}")
        return self


def reward_needs(settings: Mapping[str, object]) -> frozenset[Role]:
    """The model that scores with these settings, for `Method.needs_with`: in the role reward, judge, or none."""
    role = {"model": "reward", "judge": "judge"}.get(str(settings.get("reward", "model")))
    return frozenset() if role is None else frozenset({role})


def reward_reads(settings: Mapping[str, object]) -> Mapping[str, str]:
    """What the verifier is, for `Method.reads`: its name with its version, else with a digest of its file.

    Raises:
        UserError: it cannot be had, or neither its version nor its file is known.
    """
    reward = settings.get("reward", "model")
    if not isinstance(reward, str):
        raise UserError(f"reward is {reward!r}; it decides what a step needs, so it is one name and cannot be searched")
    if reward in ("model", "judge"):
        return {}
    return {"reward": f"{reward}@{_version(reward, _verifier(reward))}"}


def _verifier(name: str) -> Verifier:
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"reward {name!r} is not known; expected {_HELP}")
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # a module of the user's raises whatever it raises
        raise UserError(
            f"cannot load the verifier {name!r}: {type(error).__name__}: {error}; its module must be installed, or lie "
            "in the folder the command is run from"
        ) from error
    if not callable(found):
        raise UserError(
            f"the verifier {name!r} is {type(found).__name__}; expected a function (prompt turns, response, row) -> "
            "float"
        )
    return cast("Verifier", found)


def _version(name: str, verifier: Verifier) -> str:
    version = getattr(verifier, "version", None)
    if isinstance(version, int | str):
        return str(version)
    if version is not None:
        raise UserError(f"the verifier {name!r} has a version {version!r}; expected a whole number or a text")
    try:
        source = inspect.getsource(inspect.getmodule(verifier) or verifier)
    except (OSError, TypeError) as error:
        raise UserError(
            f"the verifier {name!r} has no version and no source file; write it in a module of your own and give it "
            "one, such as `score.version = 1`: stored results go by it"
        ) from error
    return hashlib.sha256(source.encode()).hexdigest()[:16]


class Rewarder(ABC):
    """Scores responses; `name` is who does."""

    name: str

    @abstractmethod
    def score(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float]:
        """The reward of each response to the prompt of its row (`prompt`: turns; a verifier reads other columns).

        Raises:
            UserError: a verifier failed, with the row it failed on.
            InfeasibleError: the reward model's score is not finite.
        """

    def prefer(self, rows: Sequence[Row], firsts: Sequence[Response], seconds: Sequence[Response]) -> list[float]:
        """The probability that the first of two responses is the better one; 0.5 where both are worth the same."""
        scores = self.score([*rows, *rows], [*firsts, *seconds])
        return [0.5 + (a > b) / 2 - (a < b) / 2 for a, b in zip(scores, scores[len(rows) :], strict=False)]


def make_rewarder(inputs: Inputs, params: RewardParams, context: Context) -> Rewarder:
    """Who scores, by the settings. Responses given as tokens are the policy's.

    Raises:
        UserError: the reward model has another tokenizer than the policy, or the verifier cannot be had.
    """
    policy = inputs.load("policy")
    if params.reward == "model":
        return _Model(inputs.load("reward"), policy, context.precision)
    if params.reward == "judge":
        return _Judged(inputs.judge(), policy.tokenizer)
    return _Verified(params.reward, policy.tokenizer)


class _Texts(Rewarder):
    """Who reads texts; what was sampled is read as its reader would see it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer

    def text(self, response: Response) -> str:
        if isinstance(response, str):
            return response
        found: str = self.tokenizer.decode(list(response), skip_special_tokens=True).strip()
        return found


class _Verified(_Texts):
    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__(tokenizer)
        self.name, self.verifier = name, _verifier(name)

    def score(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float]:
        return [self._one(row, self.text(response)) for row, response in zip(rows, responses, strict=True)]

    def _one(self, row: Row, response: str) -> float:
        where = f"the verifier {self.name!r}, on the row with the prompt {_shown(row['prompt'])}"
        try:
            score = self.verifier(row["prompt"], response, row)
        except Exception as error:  # a function of the user's raises whatever it raises
            raise UserError(f"{where}: {type(error).__name__}: {error}; mend the verifier or the row") from error
        try:
            value = float(score)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}, gave {score!r:.80}; expected a number") from error
        if not math.isfinite(value):
            raise UserError(f"{where}, gave {value}; expected a finite number")
        return value


def _shown(prompt: Turns) -> str:
    return repr(" ".join(prompt[-1]["content"].split())[:80])


class _Judged(_Texts):
    def __init__(self, judge: Judge, tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__(tokenizer)
        self.judge, self.name = judge, judge.name

    def score(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float]:
        return self.judge.rate([(row["prompt"], self.text(r)) for row, r in zip(rows, responses, strict=True)])

    def prefer(self, rows: Sequence[Row], firsts: Sequence[Response], seconds: Sequence[Response]) -> list[float]:
        # A judge tells two answers apart where it would give both the same mark.
        return self.judge.prefer(
            [(row["prompt"], self.text(a), self.text(b)) for row, a, b in zip(rows, firsts, seconds, strict=True)]
        )


class _Model(Rewarder):
    """The recipe's reward model. It reads prompt and response as the chat template closes them.

    A response that the length limit cut gets the end token it lacks, as in the texts the model was trained on.
    """

    name = "reward model"

    def __init__(self, reward: LoadedModel, policy: LoadedModel, precision: str) -> None:
        from methods._ppo_models import TokenScorer, closing_tokens

        if reward.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise UserError(
                f"the reward model in {reward.folder} has another tokenizer than the policy in {policy.folder}; "
                "train the reward model from the same base model"
            )
        self.tokenizer = reward.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer in {reward.folder} names no end token (eos_token)")
        self.eos = int(self.tokenizer.eos_token_id)
        pad = self.tokenizer.pad_token_id
        self.pad = self.eos if pad is None else int(pad)
        self.closing = closing_tokens(self.tokenizer)
        self.scorer = TokenScorer.frozen(reward.model, precision)

    def score(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float]:
        import torch

        from methods._ppo_attention import quick_attention

        read = [self._sequence(row, response) for row, response in zip(rows, responses, strict=True)]
        # Responses to one prompt are read together, which share it; otherwise texts of one length: less padding.
        order = sorted(range(len(read)), key=lambda i: read[i][0] if self.scorer.share else len(read[i][0]))
        scores = [0.0] * len(read)
        with quick_attention(self.scorer.model), torch.no_grad():
            for start in range(0, len(order), _AT_ONCE):
                part = order[start : start + _AT_ONCE]
                sequences, prompts = zip(*(read[i] for i in part), strict=True)
                found = self.scorer.last(sequences, prompts, self.pad).tolist()
                for place, score in zip(part, found, strict=True):
                    scores[place] = score
        if not all(map(math.isfinite, scores)):
            raise InfeasibleError("a score of the reward model is not finite")
        return scores

    def _sequence(self, row: Row, response: Response) -> tuple[list[int], int]:
        # What is read, and how much of it is the prompt.
        opened = self.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        prompt: list[int] = self.tokenizer(opened, add_special_tokens=False)["input_ids"]
        said: list[int] = (
            self.tokenizer(response, add_special_tokens=False)["input_ids"]
            if isinstance(response, str)
            else list(response)
        )
        end = [] if said[-1:] == [self.eos] else [self.eos]
        return [*prompt, *said, *end, *self.closing], len(prompt)
