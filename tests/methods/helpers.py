"""Synthetic chat data with learnable rules, and what the method tests measure."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from harness.method import Context, Inputs, LoadedModel
from harness.models import load_model

WORDS = ["apple", "river", "stone", "cloud", "tiger", "lemon", "piano", "chair", "green", "north"]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def instructions(count: int, seed: int) -> Any:
    """The answer repeats the word asked for, twice."""
    import datasets

    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        word = random_.choice(WORDS)
        rows.append(
            {
                "prompt": [turn("user", f"say {word} {random_.randrange(100)}")],
                "completion": [turn("assistant", f"{word} {word}")],
                "constraints": "[]",
            }
        )
    return datasets.Dataset.from_list(rows)


def preferences(count: int, seed: int) -> Any:
    """The answer that ends politely is chosen, whatever the words before it."""
    import datasets

    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        good, bad = random_.sample(WORDS, 2)
        rows.append(
            {
                "prompt": [turn("user", f"name {random_.randrange(1000)}")],
                "chosen": [turn("assistant", f"{good} please")],
                "rejected": [turn("assistant", f"{bad} never")],
                "constraints": "[]",
            }
        )
    return datasets.Dataset.from_list(rows)


class Log:
    """Keeps what a method logs."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, dict[str, float]]] = []

    def __call__(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((step, total, dict(metrics)))

    def values(self, name: str) -> list[float]:
        return [metrics[name] for _, _, metrics in self.steps]


def make_inputs(folder: Path, dataset: Any) -> Inputs:
    return Inputs(folders={"policy": folder}, loader=lambda _role, path: load_model(path), dataset=dataset)


def make_context(
    scratch: Path,
    log: Log,
    *,
    seed: int = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    deadline: float | None = None,
) -> Context:
    return Context(seed=seed, scratch=scratch, precision=precision, log=log, deadline=deadline)


def completion_log_prob(loaded: LoadedModel, model: Any, prompt: Any, completion: Any) -> tuple[float, int]:
    """Summed log-probability (nats) of an answer and its number of tokens, by the plainest means."""
    import torch

    from methods._rows import encode

    before, after = encode(loaded.tokenizer, prompt, completion)
    ids = torch.tensor([before + after])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    found = log_probs.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(before) - 1 :]
    return float(found.sum()), len(after)


def held_out_loss(loaded: LoadedModel, model: Any, dataset: Any) -> float:
    total = [completion_log_prob(loaded, model, row["prompt"], row["completion"]) for row in dataset]
    return -sum(value for value, _ in total) / sum(tokens for _, tokens in total)


def weights(model: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}
