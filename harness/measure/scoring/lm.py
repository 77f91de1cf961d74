"""The lm-eval model `prefix-tree`: lm-eval's `hf` model with every shared token computed once."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.errors import MeasurementError
from harness.measure.scoring._counted import CountedHFLM
from harness.measure.scoring._forward import Budget, unsupported
from harness.measure.scoring._generate import Generated, generate_tree
from harness.measure.scoring._plain import generate_plain
from harness.measure.scoring._sampling import GREEDY, Sampling
from harness.measure.scoring._score import Pair, score_plain, score_tree
from harness.measure.scoring._text import StopStrings, encode_all, encode_pairs

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Engine", "PrefixTreeLM", "encode_chat"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""`progress(done, total)` in requests."""

_NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "guidance_scale": 1.0}
_CHANGING = (
    "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "min_new_tokens", "exponential_decay_length_penalty", "encoder_repetition_penalty",
)  # fmt: skip


class Engine:
    """Scores and continues token sequences with one model; the way (tree or plain) is decided once and said in the log.

    Args:
        model: any causal language model.
        tokens: largest number of tokens of a forward pass; by default what suits the device.
    """

    def __init__(self, model: "PreTrainedModel", tokens: int | None = None) -> None:
        self.model = model
        self.budget = Budget.of(model.device, tokens)
        self.fallback = unsupported(model)
        """Why shared tokens are computed again for this model, or None."""
        if self.fallback:
            log.warning("prefix-tree: plain batches for %s: %s", type(model).__name__, self.fallback)

    def score(self, pairs: Sequence[Pair], progress: Progress | None = None) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is greedy) of the last n tokens of each (tokens, n), in order.

        Raises:
            MeasurementError: a log-likelihood is NaN or infinite.
        """
        if not pairs:
            return []
        way = score_plain if self.fallback else score_tree
        while True:
            try:
                return way(self.model, pairs, self.budget, progress)
            except torch.OutOfMemoryError as error:
                self._shrink(error)

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        smaller = self.budget.halved()
        if smaller is None:
            raise error
        log.warning("prefix-tree: out of memory at %d tokens a pass; going on with half", self.budget.tokens)
        self.budget = smaller
        torch.cuda.empty_cache()

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        ends: frozenset[int] = frozenset(),
        stop: Callable[[list[int]], bool] | None = None,
        sampling: Sampling = GREEDY,
        seeds: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Continue each context, in order; see `generate_tree`. `seeds` make a sample independent of its batch."""
        limits = [max_new_tokens] * len(contexts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        own = list(range(len(contexts)) if seeds is None else seeds)
        found: dict[int, Generated] = {}
        while left := [i for i in range(len(contexts)) if i not in found]:
            parts = [contexts[i] for i in left], [limits[i] for i in left]
            settings: dict[str, Any] = {
                "ends": ends,
                "stop": stop,
                "sampling": sampling,
                "seeds": [own[i] for i in left],
            }
            if self.fallback:
                ways = generate_plain(self.model, *parts, **settings)
            else:
                ways = generate_tree(self.model, *parts, self.budget, **settings)
            try:
                for index, generated in ways:
                    found[left[index]] = generated
                    if progress is not None:
                        progress(len(found), len(contexts))
            except torch.OutOfMemoryError as error:
                self._shrink(error)
        return [found[i] for i in range(len(contexts))]


@register_model("prefix-tree")
class PrefixTreeLM(CountedHFLM):
    """Takes what lm-eval's `hf` takes (`pretrained` as a name, folder or loaded model, `tokenizer`, `dtype`, …).

    Results are those of `hf` with `logits_cache=False` and batch size 1. `batch_size` is accepted and not used: a pass
    is bounded by `token_budget` tokens. Samples differ with `seed`.
    """

    def __init__(self, pretrained: "str | PreTrainedModel", token_budget: int | None = None, **kwargs: Any) -> None:  # noqa: ANN401 (lm-eval's own arguments)
        kwargs["logits_cache"] = False
        super().__init__(pretrained, **kwargs)
        if self.backend != "causal":
            raise ValueError("prefix-tree: only causal language models; use lm-eval's hf for encoder-decoder models")
        self.engine = Engine(self.model, int(token_budget) if token_budget else None)
        self.progress: Progress | None = None
        self.seed = 0

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `lm_eval.api.model.LM.loglikelihood`."""
        if self.enable_thinking:
            raise ValueError("enable_thinking=True has no meaning for log-likelihoods; use generative tasks only")
        texts = [r.args for r in requests]
        encoded = encode_pairs(self.tokenizer, texts, self.prefix_token_id, self.add_bos_token)
        for request, (context, continuation) in zip(requests, encoded, strict=True):
            self.counts[str(request.task_name)].cut(len(context) + len(continuation) - self.max_length - 1)
        return self._loglikelihood_tokens(
            [(text, context, continuation) for text, (context, continuation) in zip(texts, encoded, strict=True)]
        )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        pairs: list[Pair] = []
        for text, context, continuation in requests:
            if not context or not continuation or len(continuation) > self.max_length:
                raise MeasurementError(
                    f"a request cannot be scored: {len(context)} context and {len(continuation)} continuation tokens, "
                    f"expected at least one each and at most {self.max_length} continuation tokens: {text!r:.200}"
                )
            pairs.append(((context + continuation)[-(self.max_length + 1) :], len(continuation)))
        results = self.engine.score(pairs, self.progress)
        for (text, _, _), result in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """See `lm_eval.api.model.LM.loglikelihood_rolling`; windows as lm-eval cuts them."""
        texts = [r.args[0] for r in requests]
        prefix = self.tokenizer.decode(self.prefix_token_id)
        encoded = encode_all(self.tokenizer, texts, prefix, self.add_bos_token)
        windows, owners = [], []
        for i, text in enumerate(texts):
            rolling = get_rolling_token_windows(
                token_list=encoded[text], prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            for window in map(make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(i)
        for request in requests:
            self.counts[str(request.task_name)].cut(0)
        totals = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """See `lm_eval.api.model.LM.generate_until`."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        found: dict[int, str] = {}
        for members in groups.values():
            settings = normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks)
            sampling = self._sampling(dict(settings))
            if sampling is None:
                log.warning("prefix-tree: lm-eval's own generation for %s", settings)
                texts = super().generate_until([requests[i] for i in members], disable_tqdm=disable_tqdm)
                found.update(zip(members, texts, strict=True))
                continue
            asked = [requests[i] for i in members]
            for i, text in zip(members, self._generate(asked, settings, sampling), strict=True):
                found[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return [found[i] for i in range(len(requests))]

    def _sampling(self, settings: dict[str, Any]) -> Sampling | None:
        # None: something this decoding does not know is asked for, in the request or in the model's own configuration.
        for name in ("until", "max_gen_toks"):
            settings.pop(name)
        sample, temperature = settings.pop("do_sample"), settings.pop("temperature", 0.0)
        config = self.model.generation_config
        if self.engine.fallback or set(settings) - {"top_k", "top_p"}:
            return None
        if any(getattr(config, k, None) not in (None, v) for k, v in _NEUTRAL.items()):
            return None
        if any(getattr(config, k, None) for k in _CHANGING):
            return None
        if not sample:
            return GREEDY
        if any(getattr(config, k, None) for k in ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")):
            return None
        top_k = settings.get("top_k", config.top_k)
        top_p = settings.get("top_p", config.top_p)
        if temperature <= 0:
            return None
        return Sampling(temperature, top_k or 0, 1.0 if top_p is None else top_p)

    def _generate(self, requests: "list[Instance]", settings: dict[str, Any], sampling: Sampling) -> list[str]:
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(settings["until"], eos=end)
        limit = settings["max_gen_toks"]
        room = self.max_length - limit
        if room <= 0:
            raise MeasurementError(f"max_gen_toks={limit} leaves no room for a prompt in {self.max_length} tokens")
        texts = [r.args[0] for r in requests]
        encoded = encode_all(self.tokenizer, texts, self.tokenizer.bos_token, self.add_bos_token)
        own = self.model.generation_config.eos_token_id
        ends = {self.eot_token_id, *([own] if isinstance(own, int) else own or [])}
        generated = self.engine.generate(
            [encoded[t][-room:] for t in texts],
            limit,
            ends=frozenset(ends),
            stop=StopStrings(self.tokenizer, stops),
            sampling=sampling,
            seeds=[(self.seed << 32) + i for i in range(len(texts))],
            progress=self.progress,
        )
        for request, text, answer in zip(requests, texts, generated, strict=True):
            counts = self.counts[str(request.task_name)]
            counts.cut(len(encoded[text]) - room)
            counts.wrote(ended=answer.ended)
        return [self._text(g.tokens, stops) for g in generated]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results, and how they were computed."""
        info: dict[str, Any] = super().get_model_info()
        return {**info, "scorer": "prefix-tree", "scorer_fallback": self.engine.fallback}

    def _text(self, tokens: list[int], stops: list[str]) -> str:
        end = self.think_end_token
        thought = isinstance(end, int)
        if thought and end in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
        text = self.tok_decode(tokens)
        if thought:
            text = text.lstrip()
        cut: str = postprocess_generated_text(text, stops, end if isinstance(end, str) else None)
        return cut


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Sequence[dict[str, str]]]
) -> list[list[int]]:
    """Chats that await an answer → token ids, the generation prompt included."""
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    return [list(map(int, t)) for t in tokenizer(texts, add_special_tokens=False)["input_ids"]]
