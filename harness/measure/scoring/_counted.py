"""lm-eval's `hf` model that counts, task by task, what it was asked and how much of it fitted into its window."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from harness.measure._requests import Requests
from harness.measure.scoring._text import encode_all

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["CountedHFLM"]


class CountedHFLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """Scores as `hf` does. It does not tell how a generation ended: `at_limit` stays unknown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (lm-eval's own arguments)
        super().__init__(*args, **kwargs)
        self.counts: defaultdict[str, Requests] = defaultdict(Requests)
        """Task → what was counted for it."""
        self._owners: list[str] | None = None

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `lm_eval.api.model.LM.loglikelihood`."""
        self._owners = [str(r.task_name) for r in requests]
        try:
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._owners = None
        return found

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        # Windows of a rolling log-likelihood come here too: nothing of them is cut.
        for task, (_, context, continuation) in zip(self._owners or (), requests, strict=False):
            self.counts[task].cut(len(context) + len(continuation) - self.max_length - 1)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        return found

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """See `lm_eval.api.model.LM.generate_until`."""
        texts = [str(r.args[0]) for r in requests]
        encoded = encode_all(self.tokenizer, texts, self.tokenizer.bos_token, self.add_bos_token)
        for request, text in zip(requests, texts, strict=True):
            counts = self.counts[str(request.task_name)]
            room = self.max_length - normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            counts.cut(len(encoded[text]) - room)
            counts.generated, counts.at_limit = counts.generated + 1, None
        found: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return found
