"""The gold measure: what a policy gains in verifiable reward, what the learned reward says of it, and how far it went.

One response a held-out prompt, sampled from the policy. The frontier of gold reward against KL is the figure by which
reward over-optimisation is read (Gao et al. 2023, arXiv:2210.10760).
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from harness.data import Half, half_of
from harness.errors import MeasurementError, UserError
from harness.gold import gold_reward, parse_constraints
from harness.measure._again import PARTS, fewer, pass_tokens
from harness.measure._requests import Requests
from harness.method import LoadedModel
from harness.rungs import split

if TYPE_CHECKING:
    from collections.abc import Sized

    from transformers import PreTrainedTokenizerBase

    from harness.measure.scoring import Engine

__all__ = ["GoldDocument", "GoldSettings", "gold_documents", "gold_fingerprint", "measure_gold"]

Row = dict[str, object]
Turn = Mapping[str, str]


class GoldSettings(Protocol):
    """`limit` counts prompts before they are halved; `temperature` 0 is greedy; `batch_size` is the reward model's."""

    @property
    def limit(self) -> int | None: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class GoldDocument:
    """A prompt (conversation that awaits an answer), its constraints as JSON text, its identity and half."""

    prompt: Sequence[Turn]
    constraints: str
    identity: str
    half: Half


def gold_documents(rows: "Iterable[Mapping[str, Any]] | Sized", limit: int | None = None) -> list[GoldDocument]:
    """Read rows with the columns `prompt` (turns) and `constraints` (see `harness.gold.parse_constraints`).

    Raises:
        UserError: a row lacks one of them, or its constraints cannot be read.
    """
    found: list[GoldDocument] = []
    seen: dict[str, int] = {}
    for row in cast("Iterable[Mapping[str, Any]]", rows):
        if limit is not None and len(found) == limit:
            break
        if not isinstance(row.get("constraints"), str) or not row.get("prompt"):
            raise UserError(
                "the gold measure needs prompts with the column constraints (the bundled set `prompts` has it)"
            )
        try:
            parse_constraints(row["constraints"])
        except ValueError as error:
            raise UserError(f"the gold measure: {error}") from error
        turns = [{"role": t["role"], "content": t["content"]} for t in row["prompt"]]
        text = json.dumps([turns, json.loads(row["constraints"])], sort_keys=True, ensure_ascii=True)
        seen[text] = seen.get(text, 0) + 1
        again = f"#{seen[text]}" if seen[text] > 1 else ""
        identity = hashlib.sha256(f"gold\n{text}{again}".encode()).hexdigest()[:16]
        found.append(GoldDocument(turns, row["constraints"], identity, half_of(text)))
    if not found:
        raise UserError("the gold measure: the dataset has no rows")
    return found


def gold_fingerprint(rows: "Iterable[Mapping[str, Any]] | Sized", limit: int | None = None) -> str:
    """sha256 (32 hex characters) over the documents within the limit: for the measurement's key."""
    identities = "\n".join(d.identity for d in gold_documents(rows, limit))
    return hashlib.sha256(identities.encode()).hexdigest()[:32]


def measure_gold(
    loaded: LoadedModel,
    rows: "Iterable[Mapping[str, Any]] | Sized",
    reward: LoadedModel | None,
    base: LoadedModel,
    settings: GoldSettings,
    halves: Iterable[Half],
    *,
    progress: Callable[[int, int], None] | None = None,
    at: Sequence[float] = (),
    look: Callable[[int, Sequence[Row]], None] | None = None,
    repeat: int = 0,
    record: Callable[[Requests], None] | None = None,
) -> list[Row]:
    """Sample one response a prompt and score it.

    Metrics, a row each and document:
        gold_reward: `harness.gold.gold_reward` of the response, in [0, 1].
        rm_reward: the reward model's logit of the conversation with the response (only with a reward model).
        kl: sum over the response's tokens of log p_policy - log p_base, nats, at temperature 1. A one-sample estimate
            of the sequence KL: unbiased over prompts where the temperature is 1; single values may be negative.
        length: the response's tokens. Like the KL, it counts the token that ends the turn.

    The random numbers of a response depend on `seed`, `repeat` and its document alone, not on batch, limit, part or the
    other half.

    Args:
        at: rising fractions of the documents, which are measured in as many parts and the rest (`harness.rungs.split`).
        look: called after each of these parts with its number, from 0, and all rows so far (but for the KL, which is
            computed at the end); what it raises ends the measuring.
        repeat: number of the repeat, for the noise floor: other than 0, prompts meet in other batches and responses are
            drawn with other random numbers.
        record: called at the end with what there is to know of the requests for a response.

    Returns:
        Rows of the table `samples` without the measurement's key, only for documents in these halves.

    Raises:
        UserError: see `gold_documents`, or the policy and the base have different tokenizers.
        MeasurementError: a score is NaN or infinite.
    """
    from harness.measure.scoring import Engine

    wanted = set(halves)
    documents = [d for d in gold_documents(rows, settings.limit) if d.half in wanted]
    if not documents:
        return []
    tokenizer = loaded.tokenizer
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise UserError(
            "the gold measure: the policy and the base model have different tokenizers, so no KL between them"
        )
    at = at or (PARTS if repeat else ())
    engine = Engine(loaded.model, pass_tokens(loaded.model, repeat))
    asking = _Asking(engine, settings, repeat)
    found: dict[str, _Answer] = {}
    for number, part in enumerate(split([d.identity for d in documents], at)):
        if part:
            asked = [documents[i] for i in part]
            found |= {a.document.identity: a for a in _answers(loaded, asking, asked, reward, progress)}
        if look is not None and number < len(at):
            look(number, _rows(tokenizer, list(found.values()), None))
    answers = [found[d.identity] for d in documents]
    if record is not None:
        counts = Requests()
        for answer in answers:
            # The engine cuts no prompt.
            counts.cut(0)
            counts.wrote(ended=answer.ended)
        record(counts)
    # All together, also where the answers came in parts: the rounding of a sum goes with the batch.
    pairs = [([*a.context, *a.tokens], len(a.tokens)) for a in answers]
    # Both by the same passes over the same tokens: the base measured against itself is exactly 0.
    own = engine.score(pairs)
    from_base = Engine(base.model, pass_tokens(base.model, repeat)).score(pairs)
    return _rows(tokenizer, answers, [p - q for (p, _), (q, _) in zip(own, from_base, strict=True)])


@dataclass(frozen=True)
class _Answer:
    """A response, as tokens and as text, and the reward model's score where there is one."""

    document: GoldDocument
    context: Sequence[int]
    tokens: Sequence[int]
    text: str
    ended: bool
    reward: float | None


@dataclass(frozen=True)
class _Asking:
    """How responses are made."""

    engine: "Engine"
    settings: GoldSettings
    repeat: int


def _answers(
    loaded: LoadedModel,
    asking: _Asking,
    documents: Sequence[GoldDocument],
    reward: LoadedModel | None,
    progress: Callable[[int, int], None] | None,
) -> list[_Answer]:
    from harness.measure.scoring import GREEDY, Sampling, encode_chat

    tokenizer, settings = loaded.tokenizer, asking.settings
    contexts = encode_chat(tokenizer, [list(map(dict, d.prompt)) for d in documents])
    responses = asking.engine.generate(
        contexts,
        settings.max_new_tokens,
        ends=_ends(loaded),
        sampling=Sampling(settings.temperature) if settings.temperature > 0 else GREEDY,
        seeds=[_seed(settings.seed, d.identity, asking.repeat) for d in documents],
        progress=progress,
    )
    texts = [tokenizer.decode(r.tokens, skip_special_tokens=True).strip() for r in responses]
    rewards: Sequence[float | None] = [None] * len(texts)
    if reward is not None:
        size = fewer(settings.batch_size) if asking.repeat else settings.batch_size
        rewards = _reward_scores(reward, documents, texts, size)
    return [
        _Answer(d, c, r.tokens, t, r.ended, w)
        for d, c, r, t, w in zip(documents, contexts, responses, texts, rewards, strict=True)
    ]


def _rows(tokenizer: "PreTrainedTokenizerBase", answers: Sequence[_Answer], kls: Sequence[float] | None) -> list[Row]:
    """The rows of these answers, metric by metric; `kls` come with the whole only."""
    scores: dict[str, list[float]] = {
        "gold_reward": [gold_reward(a.text, parse_constraints(a.document.constraints)) for a in answers],
        **({} if kls is None else {"kl": list(kls)}),
        "length": [float(len(a.tokens)) for a in answers],
    }
    if all(a.reward is not None for a in answers):
        scores["rm_reward"] = [a.reward for a in answers if a.reward is not None]
    prompts = [tokenizer.decode(a.context) for a in answers]
    rows: list[Row] = []
    for metric, values in scores.items():
        for answer, prompt, value in zip(answers, prompts, values, strict=True):
            document = answer.document
            if not math.isfinite(value):
                raise MeasurementError(f"gold: {metric} is {value} for the document {document.identity}")
            rows.append(
                {
                    "document": document.identity,
                    "half": document.half,
                    "prompt_hash": hashlib.sha256(prompt.encode()).hexdigest()[:16],
                    "metric": metric,
                    "score": value,
                    "response": answer.text,
                    "expected": document.constraints,
                    "prompt": prompt,
                }
            )
    return rows


def _seed(seed: int, identity: str, repeat: int) -> int:
    again = f" {repeat}" if repeat else ""
    return int.from_bytes(hashlib.sha256(f"{seed} {identity}{again}".encode()).digest()[:8])


def _ends(loaded: LoadedModel) -> frozenset[int]:
    config = loaded.model.generation_config
    own = config.eos_token_id if config is not None else None
    ids = [loaded.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])]
    return frozenset(i for i in ids if i is not None)


def _reward_scores(
    reward: LoadedModel, documents: Sequence[GoldDocument], texts: Sequence[str], batch_size: int
) -> list[float]:
    """The reward model's logit of each conversation, formatted by its own chat template, in order."""
    import torch

    tokenizer = reward.tokenizer
    chats = [
        tokenizer.apply_chat_template(
            [*map(dict, d.prompt), {"role": "assistant", "content": t}], tokenize=False, add_generation_prompt=False
        )
        for d, t in zip(documents, texts, strict=True)
    ]
    encoded = tokenizer(chats, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    values = [0.0] * len(encoded)
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        width = max(len(encoded[i]) for i in batch)
        # Padding on the right: a classifier reads its score at the last token that is none, and positions stay right.
        ids = torch.full((len(batch), width), tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : len(encoded[i])] = torch.tensor(encoded[i])
            mask[row, : len(encoded[i])] = 1
        with torch.inference_mode():
            device = reward.model.device
            logits = reward.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        if logits.shape[-1] != 1:
            raise UserError(
                f"the reward model gives {logits.shape[-1]} scores a text, expected 1 (a sequence classifier)"
            )
        for i, value in zip(batch, logits[:, 0].float().tolist(), strict=True):
            values[i] = value
    return values
