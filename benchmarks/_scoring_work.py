"""The work on which scorers are compared: the requests lm-eval makes of official tasks, made once for all scorers."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness.data import DataSource
from harness.method import LoadedModel
from harness.models import load_model, resolve_model

__all__ = ["MMLU", "WORK", "Work", "bundled_model", "hf", "mirror", "prefix_tree", "requests_of"]

MMLU = ["abstract_algebra", "anatomy", "astronomy", "high_school_geography", "nutrition"]


@dataclass(frozen=True)
class Work:
    """Tasks of lm-eval, documents of each, and the kind of request they make."""

    tasks: tuple[str, ...]
    limit: int
    kind: str = "loglikelihood"
    num_fewshot: int | None = None
    max_gen_toks: int | None = None

    def with_limit(self, limit: int | None) -> "Work":
        """The same tasks with other documents."""
        return self if limit is None else replace(self, limit=limit)


WORK: dict[str, Work] = {
    "mmlu": Work(tuple(f"mmlu_{s}" for s in MMLU), 20, num_fewshot=5),
    "truthfulqa_mc1": Work(("truthfulqa_mc1",), 60),
    "truthfulqa_mc2": Work(("truthfulqa_mc2",), 60),
    "hellaswag": Work(("hellaswag",), 100),
    "arc_easy": Work(("arc_easy",), 100),
    "arc_challenge": Work(("arc_challenge",), 100),
    "gsm8k": Work(("gsm8k",), 16, kind="generate_until", max_gen_toks=128),
    "truthfulqa_gen": Work(("truthfulqa_gen",), 32, kind="generate_until", max_gen_toks=64),
    "wikitext": Work(("wikitext",), 6, kind="loglikelihood_rolling"),
}


class _Capture(LM):  # type: ignore[misc]  # lm-eval is untyped
    """Keeps the requests it is asked, and answers anything."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Instance] = []

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.kept += requests
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        self.kept += requests
        return [-1.0] * len(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.kept += requests
        return ["nothing"] * len(requests)


def requests_of(work: Work, data: str) -> list[Instance]:
    """What lm-eval asks of a model for this work, on the documents of a data source.

    Raises:
        UserError: the source lacks them.
    """
    import lm_eval.evaluator
    from lm_eval.tasks import TaskManager

    entries: list[Mapping[str, Any]] = [
        {"task": t}
        | ({"num_fewshot": work.num_fewshot} if work.num_fewshot is not None else {})
        # The mirror holds the test documents only, and lm-eval would read the training split to build the task.
        | ({"training_split": None, "validation_split": None} if t == "wikitext" else {})
        for t in work.tasks
    ]
    source = DataSource(data)
    with source.as_hub(), contextlib.redirect_stderr(io.StringIO()):
        tasks = TaskManager().load([{"group": "scoring_work", "task": entries}])["tasks"]
    for task in tasks.values():
        if work.max_gen_toks is not None:
            task.set_config("generation_kwargs", {"max_gen_toks": work.max_gen_toks}, update=True)
        task.set_fewshot_seed(1234)
    capture = _Capture()
    with contextlib.redirect_stderr(io.StringIO()):
        lm_eval.evaluator.evaluate(capture, {"tasks": tasks}, limit=work.limit, bootstrap_iters=0)
    return capture.kept


def bundled_model(dtype: str, threads: int) -> LoadedModel:
    """The bundled model, ready to score in `float32` or `bfloat16`."""
    import torch

    torch.set_num_threads(threads)
    loaded = load_model(resolve_model("smollm2-135m-instruct"))
    loaded.model.to(getattr(torch, dtype)).eval()
    return loaded


def hf(loaded: LoadedModel, batch_size: int, *, logits_cache: bool = False) -> Any:
    """lm-eval's own model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, logits_cache=logits_cache)


def prefix_tree(loaded: LoadedModel) -> Any:
    """Ours."""
    from harness.measure.scoring import PrefixTreeLM

    return PrefixTreeLM(loaded.model, tokenizer=loaded.tokenizer)


def mirror() -> str:
    """The folder of official documents beside the checkout, where there is one."""
    return str(Path(__file__).resolve().parents[2] / "shared" / "data")
