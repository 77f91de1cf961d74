"""One run of learning from groups of answers: sample, score, learn, on the sampler and the models that PPO has."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Context, Inputs, Trained
from methods._checkpoint import random_state, set_random_state
from methods._compute import Compute
from methods._meter import Meter
from methods._online_objective import Objective, Sampled
from methods._optimizer import make_optimizer, set_rate, spread_rates, state_mb
from methods._peft_model import adapted, as_it_came
from methods._ppo_attention import quick_attention
from methods._ppo_experience import Responses, shuffled
from methods._ppo_math import finite, learning_rate_factor, masked_mean
from methods._ppo_models import Policy, Sampler, Scores, check_model
from methods._ppo_setup import frozen_reference, make_texts
from methods._ppo_update import recomputing
from methods._prompt_order import PromptOrder
from methods._resume import trained_state
from methods._rewards import make_rewarder
from methods._rollout import sample
from methods._rollout_run import RolloutRun
from methods._shared_prompt import can_share, sharing
from methods._sparsity import KeptZeros

if TYPE_CHECKING:
    from methods._online import OnlineParams

__all__ = ["OnlineTrainer"]


class OnlineTrainer(RolloutRun):
    """Everything one run holds. One generator decides every random choice."""

    params: "OnlineParams"

    def __init__(
        self, name: str, inputs: Inputs, params: "OnlineParams", context: Context, objective: Objective
    ) -> None:
        policy = inputs.load("policy")
        super().__init__(params, context, policy.tokenizer, policy.model.device.type)
        self.name, self.objective = name, objective
        self.model = policy.model.eval()
        check_model(self.model)
        self.shared = can_share(self.model)
        self.texts = make_texts(name, inputs, policy, params)
        self.rewarder = make_rewarder(inputs, params, context)
        precision = context.precision
        self.sampler = Sampler(self.model, precision, separate=precision == "bfloat16" or params.adapts)
        self.peft: Any = None
        self.reference: Policy | None = None
        if params.adapts:
            self.peft = adapted(self.model, params, context.seed).eval()
        else:
            self.model.requires_grad_(True)
        if objective.reference:
            self.reference = self._seen(
                self.model if params.adapts else frozen_reference(name, inputs, self.model, precision)
            )
        self.policy = self._seen(self.model)
        # As in PPO: the ready-cast copy gives what the policy gives under autocast; merged weights round otherwise.
        self.before = self._seen(self.model if params.adapts else self.sampler.model)
        self.weights: list[nn.Parameter] = [p for p in self.model.parameters() if p.requires_grad]
        if params.gradient_checkpointing and not self.model.supports_gradient_checkpointing:
            raise UserError(
                f"{type(self.model).__name__} cannot recompute its layers; leave gradient_checkpointing out"
            )
        groups = spread_rates([{"params": self.weights, "lr": params.learning_rate}], self.model, params.ratio)
        self.rates: list[float] = [group["lr"] for group in groups]
        self.optimizer = make_optimizer(groups, params, self.model.device.type, betas=(0.9, 0.95))
        self.zeros, self.compute = KeptZeros(self.model), Compute(self.model)
        self.generator = torch.Generator().manual_seed(context.seed)
        self.order = PromptOrder(len(self.texts.prompts), self.generator)
        # Where a group of steps is repeated, each round goes on from where the one before ended.
        self.order.take(context.round * params.iterations * self._prompts_at_once)
        self.trained_tokens = 0

    def _seen(self, model: Any) -> Policy:  # noqa: ANN401  # transformers is untyped
        return Policy(model, self.context.precision, self.params.temperature, share=self.shared)

    @property
    def _prompts_at_once(self) -> int:
        return self.params.rollout_batch_size // self.params.group_size

    def train(self) -> Trained:
        """All iterations; the policy, adapters merged, and the last iteration's figures."""
        params, iterations = self.params, self.params.iterations
        meter = Meter(self.model.device.type)
        running = [self.model, self.sampler.model, *([self.reference.model] if self.reference else [])]
        with quick_attention(*running), self.zeros:
            for iteration in range(self._resume(), iterations):
                self.context.check()
                if self.checkpoints.due() and iteration > 0:
                    self.checkpoints.save(iteration, trained_state(self.model), self._state())
                factor = learning_rate_factor(iteration, iterations, params.warmup, decay=params.schedule == "linear")
                for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                    set_rate(group, rate * factor)
                sampled, logged = self.collect()
                weights, figures = self.objective.weigh(sampled, self.rewarder)
                with self.timed("training"):
                    figures |= self._update(sampled, weights)
                logged |= sampled.figures() | figures
                logged["learning_rate"] = params.learning_rate * factor
                self.tokens += int(sampled.rollout.mask.sum())
                self.checkpoints.log(iteration + 1, iterations, logged)
                meter.tick()
        figures = {
            **self.counted(),
            "train_tokens": float(self.trained_tokens),
            **self.compute.figures(self.trained_tokens, recomputed=params.gradient_checkpointing),
            **meter.figures(),
            "optimizer_state_mb": state_mb(self.optimizer),
            "prompts_left_out": float(self.texts.left_out),
            "shared_prompt": float(self.shared),
        }
        return self.left(self.model, self.peft, figures)

    def _state(self) -> dict[str, object]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": random_state(),
            "left": list(self.order.left),
            "trained_tokens": self.trained_tokens,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def _resume(self) -> int:
        """Go on from the checkpoint, if there is one; how many iterations are done."""
        if (found := self.checkpoints.resume()) is None:
            return 0
        found.restore(trained_state(self.model))
        state = found.state()
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        set_random_state(state["random"])
        self.order.left = list(state["left"])
        self.trained_tokens, self.tokens, self.seconds = state["trained_tokens"], state["tokens"], state["seconds"]
        return found.step

    @torch.no_grad()
    def collect(self) -> tuple[Sampled, dict[str, float]]:
        """Responses of the present policy to the next prompts, scored; and what is logged of them.

        Raises:
            InfeasibleError: a log-probability or a score is not finite.
        """
        params = self.params
        chosen = [i for i in self.order.take(self._prompts_at_once) for _ in range(params.group_size)]
        with self.timed("sampling"):
            responses = self._sample(chosen)
        rollout = responses.rollout
        with self.timed("scoring"):
            said = responses.said()
            found = self.rewarder.score(responses.rows, said) if self.objective.scored else [0.0] * len(said)
            scores = torch.tensor(found, device=rollout.tokens.device)
            finite(float(scores.sum()), "a reward")
            minibatches = self._minibatches()
            old, entropy, known, reference = self._read(responses, minibatches)
        lost = params.missing_eos_penalty * (~rollout.ended).to(scores.dtype)
        sampled = Sampled(
            **vars(responses),
            size=params.group_size,
            scores=scores - lost,
            logprobs=old,
            entropy=entropy,
            known=known,
            reference=reference,
            minibatches=minibatches,
        )
        logged: dict[str, float] = {}
        if self.objective.scored:
            spread = sampled.scores.view(-1, params.group_size).std(1).mean()
            logged = {"reward": float(scores.mean()), "reward_std": float(spread)}
        return sampled, logged

    def _sample(self, chosen: list[int]) -> Responses:
        prompts = [self.texts.prompts[i] for i in chosen]
        self.sampler.refresh()
        with self.sampler.context():
            rollout = sample(
                self.sampler.model,
                prompts,
                max_new_tokens=self.params.max_new_tokens,
                temperature=self.params.temperature,
                eos=self.texts.eos,
                pad=self.texts.pad,
                generator=self.generator,
                share_prompts=True,
            )
        return Responses(prompts, [self.texts.rows[i] for i in chosen], rollout, self.texts.pad)

    def _minibatches(self) -> list[Tensor]:
        """The numbers of the responses in a new random order, in minibatches of whole groups."""
        size, device = self.params.group_size, self.model.device
        found = shuffled(self._prompts_at_once, self.params.minibatch_size // size, self.generator, device)
        return [(part[:, None] * size + torch.arange(size, device=device)).flatten() for part in found]

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """A minibatch in the parts of its forward passes, whole groups each."""
        size, parts = self.params.group_size, self.params.gradient_accumulation
        return list(torch.split(rows, -(-len(rows) // (size * parts)) * size))

    def _read(self, responses: Responses, minibatches: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """By the sampling policy log-probabilities, entropies and of which rows; log-probabilities by the reference.

        In the batches of training. The first minibatch is learned from by the very policy that sampled: where nobody
        asks before, what it says there is left to that pass.
        """
        old, entropy = (torch.zeros_like(responses.rollout.logprobs) for _ in range(2))
        known = torch.ones(len(old), dtype=torch.bool, device=old.device)
        known[minibatches[0]] = self.objective.weighs_logprobs
        reference = torch.zeros_like(old) if self.reference is not None else None
        for part in (part for rows in minibatches for part in self._parts(rows)):
            batch = responses.batch(part)
            if bool(known[part].all()):
                _note(old, entropy, part, self.before.evaluate(batch, entropy="figure"))
            if self.reference is not None and reference is not None:
                off: AbstractContextManager[None] = nullcontext() if self.peft is None else as_it_came(self.peft)
                with off:
                    reference[part] = self.reference.evaluate(batch).logprobs
        return old, entropy, known, reference

    def _update(self, sampled: Sampled, weights: Tensor) -> dict[str, float]:
        seen: list[dict[str, float]] = []
        for epoch in range(self.params.epochs):
            for rows in self._minibatches() if epoch else sampled.minibatches:
                self.context.check()
                measured, stepped = self._step(sampled, weights, rows)
                seen.append(measured)
                if not stepped:
                    return _summary(seen)
        return _summary(seen)

    def _step(self, sampled: Sampled, weights: Tensor, rows: Tensor) -> tuple[dict[str, float], bool]:
        """One minibatch: measure it, and take an optimizer step unless it is past `max_kl` (then False)."""
        params = self.params
        parts = self._parts(rows)
        measured: dict[str, float] = {"grad_norm": 0.0, "updates": 0.0}
        self.optimizer.zero_grad(set_to_none=True)
        with sharing(*([self.model] if self.shared else [])):
            for place, part in enumerate(parts):
                share = self.objective.share(sampled, weights, part, rows)
                batch = sampled.batch(part)
                asked = bool(sampled.known[part].all())
                with recomputing([self.model], wanted=params.gradient_checkpointing):
                    seen = self.policy.evaluate(batch, entropy="none" if asked else "figure")
                now = seen.logprobs
                if not asked:
                    _note(sampled.logprobs, sampled.entropy, part, seen)
                    sampled.known[part] = True
                self.trained_tokens += sum(len(sampled.prompts[i]) for i in part.tolist()) + len(batch.targets)
                loss, found = self.objective.loss(now, sampled, weights, part)
                finite(float(loss.detach()), "the loss")
                found |= _moved(now.detach(), sampled.logprobs[part], batch.mask) | {"loss": float(loss.detach())}
                measured["ratio_max"] = max(measured.get("ratio_max", 0.0), found.pop("ratio_max"))
                measured |= {name: measured.get(name, 0.0) + share * value for name, value in found.items()}
                if place == len(parts) - 1 and params.max_kl is not None and measured["approximate_kl"] > params.max_kl:
                    return measured, False
                (share * loss).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        measured["grad_norm"] = finite(
            float(nn.utils.clip_grad_norm_(self.weights, params.max_grad_norm)), "the gradient's norm"
        )
        self.optimizer.step()
        self.zeros.restore()
        return measured | {"updates": 1.0}, True


def _note(logprobs: Tensor, entropy: Tensor, rows: Tensor, found: Scores) -> None:
    # What the sampling policy says of some rows, into the tensors of all.
    logprobs[rows] = found.logprobs.detach()
    if found.entropy is not None:
        entropy[rows] = found.entropy
    finite(float(logprobs[rows].sum()), "a log-probability")


def _moved(now: Tensor, old: Tensor, mask: Tensor) -> dict[str, float]:
    gap = torch.where(mask, now - old, 0.0)
    return {
        "approximate_kl": float(masked_mean(torch.expm1(gap) - gap, mask)),
        "ratio_max": float(gap.abs().max().exp()),
    }


def _summary(seen: list[dict[str, float]]) -> dict[str, float]:
    summary = {name: sum(m[name] for m in seen) / len(seen) for name in seen[0]}
    return summary | {"ratio_max": max(m["ratio_max"] for m in seen), "updates": sum(m["updates"] for m in seen)}
