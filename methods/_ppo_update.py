"""Learning from a batch of experience: clipped steps of policy and value, until the policy is far enough."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Context
from methods._compute import Compute
from methods._optimizer import make_optimizer, set_rate, spread_rates
from methods._ppo_experience import Experience, shuffled
from methods._ppo_math import finite, masked_mean, policy_loss, value_loss
from methods._ppo_setup import Models
from methods._shared_prompt import sharing
from methods._sparsity import KeptZeros

if TYPE_CHECKING:
    from methods.ppo import PPOParams

__all__ = ["Learner", "recomputing"]


class Learner:
    """The weights that change, and their optimizer."""

    def __init__(self, models: Models, params: "PPOParams", context: Context, generator: torch.Generator) -> None:
        self.models, self.params, self.context, self.generator = models, params, context, generator
        head, value_model = models.policy.value_head, models.value_model
        self.policy_weights: list[nn.Parameter] = [p for p in models.trained.parameters() if p.requires_grad]
        self.value_module: nn.Module | None = value_model.model if value_model is not None else head
        self.value_weights: list[nn.Parameter] = list(self.value_module.parameters()) if self.value_module else []
        self.zeros = KeptZeros(models.trained)
        self.trained_tokens = 0
        """Of prompts and responses, in passes that a gradient was taken of."""
        self._modules = [models.trained] + ([value_model.model] if value_model is not None else [])
        self._sharing = [seen.model for seen in (models.policy, value_model) if seen is not None and seen.share]
        self._compute = [Compute(module) for module in self._modules]
        if params.gradient_checkpointing and not all(m.supports_gradient_checkpointing for m in self._modules):
            raise UserError(
                f"{type(models.trained).__name__} cannot recompute its layers; leave gradient_checkpointing out"
            )
        value_rate = params.value_learning_rate or (1e-3 if head is not None else params.learning_rate)
        groups = spread_rates(
            [
                {"params": self.policy_weights, "lr": params.learning_rate},
                {"params": self.value_weights, "lr": value_rate},
            ],
            models.trained,
            params.ratio,
        )
        self.rates: list[float] = [group["lr"] for group in groups]
        self.optimizer = make_optimizer(groups, params, models.trained.device.type, betas=(0.9, 0.95))

    def set_rates(self, factor: float) -> float:
        """Learn at this part of the full rates from now on; the policy's rate."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            set_rate(group, rate * factor)
        return self.rates[0] * factor

    def compute(self) -> dict[str, float]:
        """What training has taken so far, a value model's part included: see `Compute.figures`; and `train_tokens`."""
        parts = [c.figures(self.trained_tokens, recomputed=self.params.gradient_checkpointing) for c in self._compute]
        totals = {name: sum(part[name] for part in parts) for name in parts[0]}
        return {"train_tokens": float(self.trained_tokens), **totals}

    def update(self, experience: Experience) -> dict[str, float]:
        """Train on a batch for `epochs` passes, or until it is past `max_kl` from the sampling policy.

        Raises:
            InfeasibleError: see `step`.
            PrunedError: the stage is past its deadline.
        """
        params, count = self.params, len(experience.prompts)
        seen: list[dict[str, float]] = []
        for epoch in range(params.epochs):
            order = experience.minibatches
            if epoch > 0:
                order = shuffled(count, params.minibatch_size, self.generator, self.models.trained.device)
            for rows in order:
                self.context.check()
                measured, stepped = self.step(experience, rows)
                seen.append(measured)
                if not stepped:
                    return _summary(seen)
        return _summary(seen)

    def step(self, experience: Experience, rows: Tensor) -> tuple[dict[str, float], bool]:
        """One minibatch: measure it, and take an optimizer step unless it is past `max_kl` (then False).

        With `gradient_accumulation` the minibatch is taken in parts; figures and gradient are the whole's.

        Raises:
            InfeasibleError: the loss or the gradient is not finite.
        """
        params = self.params
        parts = list(torch.chunk(rows, params.gradient_accumulation))
        tokens = experience.rollout.mask[rows].sum()
        measured = {"ratio_max": 0.0, "grad_norm": 0.0, "updates": 0.0}
        self.optimizer.zero_grad(set_to_none=True)
        with sharing(*self._sharing):
            for place, part in enumerate(parts):
                share = experience.rollout.mask[part].sum() / tokens
                loss, found = self._measure(experience, part)
                finite(float(loss.detach()), "the loss")
                measured["ratio_max"] = max(measured["ratio_max"], found.pop("ratio_max"))
                measured |= {name: measured.get(name, 0.0) + float(share) * value for name, value in found.items()}
                # Before the last backward pass, so that a whole minibatch past the bound costs none.
                last = place == len(parts) - 1
                if last and params.max_kl is not None and measured["approximate_kl"] > params.max_kl:
                    return measured, False
                self.trained_tokens += sum(len(experience.prompts[i]) for i in part.tolist())
                self.trained_tokens += int(experience.rollout.mask[part].sum())
                (share * loss).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        # A value model has its own norm: its early, large errors must not shrink the policy's steps.
        groups = [self.policy_weights, self.value_weights]
        if self.models.value_model is None:
            groups = [self.policy_weights + self.value_weights]
        norms = [float(nn.utils.clip_grad_norm_(group, params.max_grad_norm)) for group in groups]
        for norm in norms:
            finite(norm, "the gradient's norm")
        self.optimizer.step()
        self.zeros.restore()
        return measured | {"grad_norm": norms[0], "updates": 1.0}, True

    def _measure(self, experience: Experience, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of some rows, a mean over their tokens, and its figures."""
        params = self.params
        batch = experience.batch(rows)
        with recomputing(self._modules, wanted=params.gradient_checkpointing):
            now = self.models.policy.evaluate(batch, entropy="learned" if params.entropy_coef > 0 else "none")
            values = self.models.values(batch, now)
        fit = policy_loss(
            now.logprobs, experience.logprobs[rows], experience.advantages[rows], batch.mask, params.clip_range
        )
        misfit = value_loss(
            values, experience.values[rows], experience.returns[rows], batch.mask, params.value_clip_range
        )
        loss = fit.loss + params.value_coef * misfit
        if now.entropy is not None:
            loss = loss - params.entropy_coef * masked_mean(now.entropy, batch.mask)
        return loss, {
            "policy_loss": float(fit.loss.detach()),
            "value_loss": float(misfit.detach()),
            "approximate_kl": float(fit.approximate_kl),
            "clip_fraction": float(fit.clip_fraction),
            "ratio_max": float(fit.ratio_max),
        }


@contextlib.contextmanager
def recomputing(modules: Sequence[Any], *, wanted: bool) -> Iterator[None]:
    """In it, if `wanted`, the models' layers keep their input only, and run again in the backward pass."""
    if not wanted:
        yield
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for module in modules for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    for module in modules:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    # transformers recomputes in training mode only. What is inside the layers stays in eval mode: with dropout
    # the policy would not be the one that sampled.
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        for module in modules:
            module.gradient_checkpointing_disable()


def _summary(seen: list[dict[str, float]]) -> dict[str, float]:
    summary = {k: sum(m[k] for m in seen) / len(seen) for k in seen[0]}
    summary["ratio_max"] = max(m["ratio_max"] for m in seen)
    summary["updates"] = sum(m["updates"] for m in seen)
    return summary
