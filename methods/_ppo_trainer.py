"""One run of PPO: iterations of collecting experience and learning from it, their figures, and the trained model."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from harness.method import Context, Inputs, Trained
from methods._checkpoint import random_state, set_random_state
from methods._meter import Meter
from methods._optimizer import state_mb
from methods._ppo_attention import quick_attention
from methods._ppo_experience import Collector, Experience
from methods._ppo_math import AdaptiveKl, FixedKl, learning_rate_factor
from methods._ppo_setup import load_pair, make_models, make_texts
from methods._ppo_update import Learner
from methods._resume import trained_state
from methods._rewards import make_rewarder
from methods._rollout_run import RolloutRun

if TYPE_CHECKING:
    from methods.ppo import PPOParams

__all__ = ["Trainer"]


class Trainer(RolloutRun):
    """Everything one run holds. `collector` and `learner` share one generator, which decides every random choice."""

    params: "PPOParams"

    def __init__(self, inputs: Inputs, params: "PPOParams", context: Context) -> None:
        policy, reward = load_pair(inputs, params)
        super().__init__(params, context, policy.tokenizer, policy.model.device.type)
        self.texts = make_texts("ppo", inputs, policy, params)
        rewarder = make_rewarder(inputs, params, context) if reward is None else None
        self.models = make_models(inputs, policy.model, reward.model if reward else None, params, context)
        generator = torch.Generator().manual_seed(context.seed)
        self.collector = Collector(self.models, self.texts, params, generator, rewarder)
        self.learner = Learner(self.models, params, context, generator)
        self.controller: FixedKl | AdaptiveKl = (
            AdaptiveKl(params.kl_coef, params.kl_target)
            if params.kl_controller == "adaptive"
            else FixedKl(params.kl_coef)
        )
        self.generator = generator

    def train(self) -> Trained:
        """All iterations; the policy, adapters merged, and the last iteration's figures.

        It goes on from the stage's checkpoint, if it has one.
        """
        iterations = self.params.iterations
        meter = Meter(self.models.trained.device.type)
        with quick_attention(*self.models.attending), self.learner.zeros:
            for iteration in range(self._resume(), iterations):
                self.context.check()
                if self.checkpoints.due() and iteration > 0:
                    self.checkpoints.save(iteration, self._weights(), self._state())
                experience, metrics = self._iterate(iteration)
                self.tokens += int(experience.rollout.mask.sum())
                self.checkpoints.log(iteration + 1, iterations, metrics)
                meter.tick()
        figures = {
            **self.counted(),
            **self.learner.compute(),
            **meter.figures(),
            "optimizer_state_mb": state_mb(self.learner.optimizer),
            "prompts_left_out": float(self.texts.left_out),
            "shared_prompt": float(self.models.policy.share),
        }
        return self.left(self.models.trained, self.models.peft, figures)

    def _weights(self) -> dict[str, torch.Tensor]:
        parts = {"policy": self.models.trained, "value": self.learner.value_module}
        return {
            f"{part}.{name}": weight
            for part, module in parts.items()
            if module is not None
            for name, weight in trained_state(module).items()
        }

    def _state(self) -> dict[str, object]:
        return {
            "optimizer": self.learner.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": random_state(),
            "collector": self.collector.state(),
            "kl_coef": self.controller.coefficient,
            "trained_tokens": self.learner.trained_tokens,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def _resume(self) -> int:
        """Go on from the checkpoint, if there is one; how many iterations are done."""
        if (found := self.checkpoints.resume()) is None:
            return 0
        found.restore(self._weights())
        state = found.state()
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        set_random_state(state["random"])
        self.collector.go_on(state["collector"])
        self.controller = replace(self.controller, coefficient=state["kl_coef"])
        self.learner.trained_tokens, self.tokens = state["trained_tokens"], state["tokens"]
        self.seconds = state["seconds"]
        return found.step

    def _iterate(self, iteration: int) -> tuple[Experience, dict[str, float]]:
        params = self.params
        factor = learning_rate_factor(iteration, params.iterations, params.warmup, decay=params.schedule == "linear")
        rate = self.learner.set_rates(factor)
        experience = self.collect()
        figures = experience.figures()
        with self.timed("training"):
            figures |= self.learner.update(experience)
        figures |= {"kl_coef": self.controller.coefficient, "learning_rate": rate}
        self.controller = self.controller.after(figures["kl"])
        return experience, figures

    def collect(self) -> Experience:
        """Sample responses to the next prompts, score them, and estimate advantages."""
        with self.timed("sampling"):
            responses = self.collector.sample()
        with self.timed("scoring"):
            return self.collector.score(responses, self.controller.coefficient)
