"""One run of PPO: iterations of collecting experience and learning from it, their figures, and the trained model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from harness.method import Context, Inputs, Trained
from methods._adapters import beside
from methods._meter import Meter
from methods._optimizer import state_mb
from methods._peft_model import leave
from methods._ppo_attention import quick_attention
from methods._ppo_experience import Collector, Experience
from methods._ppo_math import AdaptiveKl, FixedKl, finite, learning_rate_factor
from methods._ppo_setup import load_pair, make_models, make_texts
from methods._ppo_update import Learner

if TYPE_CHECKING:
    from methods.ppo import PPOParams

__all__ = ["Trainer"]


class Trainer:
    """Everything one run holds. `collector` and `learner` share one generator, which decides every random choice."""

    def __init__(self, inputs: Inputs, params: "PPOParams", context: Context) -> None:
        self.params, self.context = params, context
        policy, reward = load_pair(inputs)
        self.tokenizer = policy.tokenizer
        self.texts = make_texts(inputs, policy, params)
        self.models = make_models(inputs, policy.model, reward.model, params, context)
        generator = torch.Generator().manual_seed(context.seed)
        self.collector = Collector(self.models, self.texts, params, generator)
        self.learner = Learner(self.models, params, context, generator)
        self.controller: FixedKl | AdaptiveKl = (
            AdaptiveKl(params.kl_coef, params.kl_target)
            if params.kl_controller == "adaptive"
            else FixedKl(params.kl_coef)
        )
        self.seconds = {"sampling": 0.0, "scoring": 0.0, "training": 0.0}

    def train(self) -> Trained:
        """All iterations; the policy, adapters merged, and the last iteration's figures."""
        metrics: dict[str, float] = {}
        tokens, iterations = 0, self.params.iterations
        meter = Meter(self.models.trained.device.type)
        with quick_attention(*self.models.attending), self.learner.zeros:
            for iteration in range(iterations):
                self.context.check()
                experience, metrics = self._iterate(iteration)
                tokens += int(experience.rollout.mask.sum())
                self.context.log(iteration + 1, iterations, metrics)
                meter.tick()
        figures = {
            **{f"final_{k}": metrics[k] for k in ("reward", "kl", "entropy", "length", "eos_fraction")},
            **{f"{part}_seconds": spent for part, spent in self.seconds.items()},
            **self.learner.compute(),
            **meter.figures(),
            "optimizer_state_mb": state_mb(self.learner.optimizer),
            "iterations": float(iterations),
            "sampled_tokens": float(tokens),
            "prompts_left_out": float(self.texts.left_out),
        }
        return self._left(figures)

    def _iterate(self, iteration: int) -> tuple[Experience, dict[str, float]]:
        params = self.params
        factor = learning_rate_factor(iteration, params.iterations, params.warmup, decay=params.schedule == "linear")
        rate = self.learner.set_rates(factor)
        experience = self.collect()
        figures = experience.figures()
        with self._timed("training"):
            figures |= self.learner.update(experience)
        figures |= {"kl_coef": self.controller.coefficient, "learning_rate": rate}
        self.controller = self.controller.after(figures["kl"])
        return experience, figures

    def collect(self) -> Experience:
        """Sample responses to the next prompts, score them, and estimate advantages."""
        with self._timed("sampling"):
            responses = self.collector.sample()
        with self._timed("scoring"):
            return self.collector.score(responses, self.controller.coefficient)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def _left(self, figures: dict[str, float]) -> Trained:
        model = self.models.trained
        for weight in model.parameters():
            finite(float(weight.detach().sum()), "a weight")
        kept = None if self.params.lora_merge else self.context.scratch / "adapter"
        if self.models.peft is not None:
            model = leave(self.models.peft, kept)
        model.requires_grad_(True)
        if kept is None:
            return Trained(model, self.tokenizer, figures)
        return beside(model, self.tokenizer, kept, figures)
