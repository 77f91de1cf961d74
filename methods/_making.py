"""What methods that make data share: prompts taken in seeded order, and the policy as a writer of answers.

A text that may become data has an end, says something, and tokenizes to ordinary tokens only: one that holds a special
token's characters would, as a part of a dialogue, end its turn.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.errors import UserError
from harness.method import Context, Inputs, Params, Turns
from methods._rows import training_order
from methods._trl import need_dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MakingParams", "Prompt", "Tally", "Text", "Writer", "draw", "take_prompts"]


class MakingParams(Params):
    """Settings of every method that lets the policy write."""

    dataset: str = Field("prompts", description="prompts to answer: a bundled name or <org>/<dataset>[:config[:split]]")
    prompts: int = Field(
        64, ge=1, description="prompts taken, in seeded order; a repeated group takes the next ones in each round"
    )
    batch_size: int = Field(32, ge=1, description="texts written at a time")
    max_new_tokens: int = Field(128, ge=1, description="length limit of a text, tokens")
    max_prompt_tokens: int = Field(512, ge=1, description="longer prompts are left out and counted, tokens")
    temperature: float = Field(1.0, ge=0, description="divides the logits in sampling; 0 takes the likeliest token")
    unfinished: Literal["leave_out", "keep"] = Field(
        "leave_out",
        description="answers cut by the length limit: left out of the data, as they would teach to stop in "
        "mid-sentence, or kept; counted either way",
    )


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was taken."""

    row: int
    """Its place in the order of taking."""
    turns: Turns
    ids: list[int]
    """As the policy reads it, the answer's turn opened."""
    source: Mapping[str, Any]
    """The dataset's whole row."""

    @property
    def rest(self) -> dict[str, Any]:
        """The row's further columns, which what is made of it keeps."""
        return {k: v for k, v in self.source.items() if k not in ("prompt", "completion", "chosen", "rejected")}


@dataclass(frozen=True)
class Text:
    """One thing the policy wrote."""

    text: str
    ids: list[int]
    """As it was sampled, the end token included."""
    ended: bool
    """False where the length limit cut it."""
    plain: bool
    """False where its characters make special tokens."""

    def problem(self, unfinished: str = "leave_out") -> str:
        """Why it cannot be data: empty, special or unfinished; nothing where it can."""
        if not self.text:
            return "empty"
        if not self.plain:
            return "special"
        return "" if self.ended or unfinished == "keep" else "unfinished"


def draw(context: Context, what: str) -> random.Random:
    """Random choices of one kind: those of another seed, round or kind are others."""
    return random.Random(f"{context.seed} {context.round} {what}")


@dataclass
class Tally:
    """What became of all that was written: counts, seconds by kind of work, other figures; they end as metrics."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Count the seconds of the block as this work's."""
        start = time.perf_counter()
        yield
        self.seconds[work] = self.seconds.get(work, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """All of them: seconds as `<work>_seconds`, and `sampled_tokens_per_s`."""
        found = self.figures | {name: float(count) for name, count in self.counts.items()}
        found |= {f"{work}_seconds": spent for work, spent in self.seconds.items()}
        if spent := self.seconds.get("sampling"):
            found["sampled_tokens_per_s"] = self.counts["sampled_tokens"] / spent
        return found


class Writer:
    """The policy, writing. Every random number comes from the context's seed and round.

    Raises:
        UserError: the policy is of a kind the sampler does not know, or has no chat template or end token.
    """

    def __init__(self, inputs: Inputs, params: MakingParams, context: Context, tally: Tally) -> None:
        import torch

        from methods._ppo_models import cast_linears, check_model

        loaded = inputs.load("policy")
        self.model, self.tokenizer, self.folder = (
            loaded.model.eval().requires_grad_(False),
            loaded.tokenizer,
            loaded.folder,
        )
        self.params, self.context, self.tally = params, context, tally
        check_model(self.model)
        if not self.tokenizer.chat_template or self.tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer in {loaded.folder} has no chat template or no end token (eos_token), which writing "
                "answers needs; start from an instruct model"
            )
        if context.precision == "bfloat16":
            cast_linears(self.model)
        self.special = _special(self.tokenizer)
        self.generator = torch.Generator().manual_seed(draw(context, "sampling").getrandbits(63))
        self.limit: int = self.model.config.get_text_config().max_position_embeddings

    def ids(self, turns: Turns) -> list[int]:
        """A dialogue as the policy reads it, the answer's turn opened."""
        text = self.tokenizer.apply_chat_template([dict(t) for t in turns], tokenize=False, add_generation_prompt=True)
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def plain(self, text: str) -> bool:
        """Whether a text tokenizes to ordinary tokens only."""
        return self.special.isdisjoint(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def fits(self, ids: Sequence[int], new: int) -> bool:
        """Whether the model holds these tokens and as many new ones."""
        return 0 < len(ids) <= self.limit - new

    def write(
        self, chats: Sequence[Sequence[int]], *, temperature: float | None = None, max_new_tokens: int | None = None
    ) -> list[Text]:
        """One text for each chat (token ids), in order, at most `batch_size` at a time.

        Raises:
            InfeasibleError: logits that are not finite.
            PrunedError: the deadline has passed.
        """
        size = self.params.batch_size
        texts: list[Text] = []
        for start in range(0, len(chats), size):
            self.context.check()
            with self.tally.timed("sampling"):
                texts += self._batch(chats[start : start + size], temperature, max_new_tokens)
        self.tally.counts["sampled_tokens"] += sum(len(t.ids) for t in texts)
        return texts

    def _batch(self, chats: Sequence[Sequence[int]], temperature: float | None, new: int | None) -> list[Text]:
        from methods._ppo_attention import quick_attention
        from methods._ppo_models import autocast
        from methods._rollout import sample

        eos, pad = int(self.tokenizer.eos_token_id), self.tokenizer.pad_token_id
        with quick_attention(self.model), autocast(self.model.device, self.context.precision):
            found = sample(
                self.model,
                chats,
                max_new_tokens=self.params.max_new_tokens if new is None else new,
                temperature=self.params.temperature if temperature is None else temperature,
                eos=eos,
                pad=eos if pad is None else int(pad),
                generator=self.generator,
                share_prompts=True,
            )
        texts = []
        for tokens, mask, ended in zip(found.tokens, found.mask, found.ended.tolist(), strict=True):
            said: list[int] = tokens[mask].tolist()
            text = self.tokenizer.decode(said[:-1] if ended else said, skip_special_tokens=False).strip()
            texts.append(Text(text, said, ended, self.plain(text)))
        return texts


def _special(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def take_prompts(inputs: Inputs, writer: Writer, params: MakingParams, context: Context, method: str) -> list[Prompt]:
    """The prompts of this round, in a seeded order: the next ones in each round, no prompt twice in one.

    Prompts that are empty, too long, or hold special tokens are passed over and counted (`prompts_left_out`).

    Raises:
        UserError: there is no dataset, or no prompt in it that fits.
    """
    dataset = need_dataset(inputs, method)
    known: dict[int, list[int] | None] = {}
    chosen: dict[int, list[int]] = {}
    passed, skip = 0, context.round * params.prompts
    while len(chosen) < params.prompts:
        order = training_order(len(dataset), len(dataset) * (passed + 1), context.seed)[-len(dataset) :]
        for i in order:
            # Only what is looked at is tokenized: a set may have a hundred times the prompts of a round.
            ids = known[i] if i in known else known.setdefault(i, _usable(dataset[i]["prompt"], writer, params))
            if ids is not None and (skip := skip - 1) < 0 and len(chosen) < params.prompts:
                chosen.setdefault(i, ids)
            if len(chosen) == params.prompts:
                break
        else:
            fitting = {i: ids for i in order if (ids := known[i]) is not None}
            if len(fitting) <= params.prompts:
                chosen = fitting
                break
        passed += 1
    writer.tally.counts["prompts_left_out"] = sum(ids is None for ids in known.values())
    if not chosen:
        raise UserError(
            f"{method}: none of the {len(dataset)} prompts has text of 1 to {params.max_prompt_tokens} tokens that "
            f"leaves room for {params.max_new_tokens} new ones in the model's {writer.limit}; raise max_prompt_tokens "
            "or lower max_new_tokens"
        )
    writer.tally.counts["prompts"] = len(chosen)
    return [Prompt(n, dataset[i]["prompt"], ids, dataset[i]) for n, (i, ids) in enumerate(chosen.items())]


def _usable(turns: Turns, writer: Writer, params: MakingParams) -> list[int] | None:
    if not turns[-1]["content"].strip() or not all(writer.plain(t["content"]) for t in turns):
        return None
    ids = writer.ids(turns)
    return ids if len(ids) <= params.max_prompt_tokens and writer.fits(ids, params.max_new_tokens) else None
