"""PPO's loop: sample, score, estimate advantages, update; one `Trainer` is one run."""

import copy
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, LoadedModel, Trained
from methods._ppo_attention import quick_attention
from methods._ppo_math import (
    AdaptiveKl,
    FixedKl,
    explained_variance,
    generalized_advantages,
    kl_k1,
    kl_k3,
    learning_rate_factor,
    masked_mean,
    masked_whiten,
    policy_loss,
    token_rewards,
    value_loss,
)
from methods._ppo_models import (
    Batch,
    Policy,
    Sampler,
    Scores,
    TokenScorer,
    cast_linears,
    check_model,
    closing_tokens,
    pack,
)
from methods._rollout import Rollout, sample

if TYPE_CHECKING:
    from methods.ppo import PPOParams

__all__ = ["Experience", "Trainer"]


@dataclass(frozen=True)
class Experience:
    """A scored rollout batch. Tensors [rows, response length] but for `scores` [rows]; all without gradient."""

    prompts: list[list[int]]
    rollout: Rollout
    minibatches: list[Tensor]
    """Row numbers of the first epoch's minibatches: the old log-probabilities come from these very batches."""
    scores: Tensor
    """The reward model's, as it gave them."""
    logprobs: Tensor
    """The sampling policy's, by the training path."""
    entropy: Tensor
    values: Tensor
    reference: Tensor
    advantages: Tensor
    returns: Tensor


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise InfeasibleError(f"{what} is {value}: training diverged; a lower learning_rate may hold")
    return value


class Trainer:
    """Everything one run of PPO holds. The parts of an iteration are methods, so that tests reach each alone."""

    def __init__(self, inputs: Inputs, params: "PPOParams", context: Context) -> None:
        self.params, self.context = params, context
        self.generator = torch.Generator().manual_seed(context.seed)
        policy = inputs.load("policy")
        reward = inputs.load("reward")
        self.tokenizer = policy.tokenizer
        _same_tokenizer(policy, reward)
        check_model(policy.model)
        self.eos, self.pad = _end_and_pad(policy)
        self.closing = closing_tokens(self.tokenizer)
        self.prompts, self.left_out = self._prompts(inputs)
        limit = policy.model.config.get_text_config().max_position_embeddings
        longest = max(map(len, self.prompts)) + params.max_new_tokens + len(self.closing) + 1
        if longest > limit:
            raise UserError(
                f"ppo: prompt and response may reach {longest} tokens, the model holds {limit}; "
                "lower max_new_tokens or max_prompt_tokens"
            )
        self._order = self._endless_order()
        self._build_models(inputs, policy.model, reward.model)
        self.controller: FixedKl | AdaptiveKl = (
            AdaptiveKl(params.kl_coef, params.kl_target)
            if params.kl_controller == "adaptive"
            else FixedKl(params.kl_coef)
        )
        self.score_shift: tuple[float, float] | None = None if params.normalize_reward else (0.0, 1.0)
        self.seconds = {"sampling": 0.0, "scoring": 0.0, "training": 0.0}

    # -- setting up ---------------------------------------------------------------------------------------------------

    def _build_models(self, inputs: Inputs, model: Any, reward: Any) -> None:  # noqa: ANN401 -- transformers is untyped
        params, precision = self.params, self.context.precision
        self.model: Any = model.eval()
        value_model = copy.deepcopy(reward).eval().requires_grad_(True) if params.value == "model" else None
        reward.eval().requires_grad_(False)
        if precision == "bfloat16":
            cast_linears(reward.base_model)
        self.reward = TokenScorer(reward, precision)
        self.sampler = Sampler(self.model, precision, separate=precision == "bfloat16" or params.lora_rank > 0)
        self.peft: Any = None
        if params.lora_rank:
            import peft

            config = peft.LoraConfig(
                r=params.lora_rank,
                lora_alpha=params.lora_alpha,
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.context.seed)
                self.peft = peft.get_peft_model(self.model, config)
            self.peft.eval()
            reference = self.model
        else:
            self.model.requires_grad_(True)
            reference = inputs.load("reference").model.eval().requires_grad_(False)
            if reference is self.model:
                raise UserError("ppo: the reference must be a second model in memory, not the policy itself")
            if precision == "bfloat16":
                cast_linears(reference)
        width = self.model.config.get_text_config().hidden_size
        head = nn.Linear(width, 1, device=self.model.device) if value_model is None else None
        if head is not None:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.policy = Policy(self.model, precision, params.temperature, head, params.value_gradient)
        # The sampler's ready-cast copy gives, bit for bit, what the policy gives under autocast, without casting 135M
        # weights for each minibatch. Not with LoRA: merged weights round otherwise than base and adapter.
        scoring = self.model if params.lora_rank else self.sampler.model
        self.sampling_policy = Policy(scoring, precision, params.temperature, head)
        self.reference = Policy(reference, precision, params.temperature)
        self.value_model = TokenScorer(value_model, precision) if value_model is not None else None
        self.attending = [self.model, self.sampler.model, reward, reference, value_model]

        self.policy_weights = [p for p in self.model.parameters() if p.requires_grad]
        value_module: Any = head if head is not None else value_model
        self.value_weights: list[nn.Parameter] = list(value_module.parameters())
        value_rate = params.value_learning_rate or (1e-3 if head is not None else params.learning_rate)
        self.rates = [params.learning_rate, value_rate]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.policy_weights, "lr": self.rates[0]},
                {"params": self.value_weights, "lr": self.rates[1]},
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )

    def _prompts(self, inputs: Inputs) -> tuple[list[list[int]], int]:
        if inputs.dataset is None:
            raise UserError("ppo needs a dataset of prompts")
        prompts = []
        for row in inputs.dataset:
            text = self.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            prompts.append(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        kept = [p for p in prompts if 0 < len(p) <= self.params.max_prompt_tokens]
        if not kept:
            raise UserError(
                f"ppo: none of the {len(prompts)} prompts has 1 to {self.params.max_prompt_tokens} tokens; "
                "raise max_prompt_tokens"
            )
        return kept, len(prompts) - len(kept)

    def _endless_order(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self.prompts), generator=self.generator).tolist()

    # -- one iteration ------------------------------------------------------------------------------------------------

    def collect(self) -> Experience:
        """Sample responses to the next prompts, score them, and estimate advantages."""
        params = self.params
        prompts = [self.prompts[i] for i in itertools.islice(self._order, params.rollout_batch_size)]
        with self._timed("sampling"):
            self.sampler.refresh()
            with self.sampler.context():
                rollout = sample(
                    self.sampler.model,
                    prompts,
                    max_new_tokens=params.max_new_tokens,
                    temperature=params.temperature,
                    eos=self.eos,
                    pad=self.pad,
                    generator=self.generator,
                )
        with self._timed("scoring"), torch.no_grad():
            return self._experience(prompts, rollout)

    def _experience(self, prompts: list[list[int]], rollout: Rollout) -> Experience:
        params, mask = self.params, rollout.mask
        minibatches = self.shuffled(len(prompts))
        old, values, entropy, reference = (torch.zeros_like(rollout.logprobs) for _ in range(4))
        scores = torch.zeros(len(prompts), device=mask.device)
        for rows in minibatches:
            batch = self.batch(prompts, rollout, rows)
            part = self.sampling_policy.evaluate(batch, entropy=True)
            old[rows] = part.logprobs
            if part.entropy is not None:
                entropy[rows] = part.entropy
            values[rows] = self.values(batch, part)
            with self._adapter_off():
                reference[rows] = self.reference.evaluate(batch).logprobs
            scores[rows] = self.reward.last(self.judged(prompts, rollout, rows), self.pad)
        for name, tensor in (("a log-probability", old), ("a value", values), ("a reward score", scores)):
            _finite(float(tensor.sum()), name)
        rewards = token_rewards(
            self.adjusted(scores, rollout.ended), kl_k1(old, reference), mask, self.controller.coefficient
        )
        if params.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(rewards, values, mask, params.gamma, params.lam)
        if params.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        return Experience(prompts, rollout, minibatches, scores, old, entropy, values, reference, advantages, returns)

    def update(self, experience: Experience) -> dict[str, float]:
        """Train on a batch for `epochs` passes, or until it is past `max_kl` from the sampling policy."""
        seen: list[dict[str, float]] = []
        with self._timed("training"):
            for epoch in range(self.params.epochs):
                order = experience.minibatches if epoch == 0 else self.shuffled(len(experience.prompts))
                for rows in order:
                    self.context.check()
                    measured, stepped = self.step(experience, rows)
                    seen.append(measured)
                    if not stepped:
                        return self._summary(seen)
        return self._summary(seen)

    @staticmethod
    def _summary(seen: list[dict[str, float]]) -> dict[str, float]:
        summary = {k: sum(m[k] for m in seen) / len(seen) for k in seen[0]}
        summary["ratio_max"] = max(m["ratio_max"] for m in seen)
        summary["updates"] = sum(m["updates"] for m in seen)
        return summary

    def step(self, experience: Experience, rows: Tensor) -> tuple[dict[str, float], bool]:
        """One minibatch: measure it, and take an optimizer step unless it is past `max_kl` (then False)."""
        params = self.params
        batch = self.batch(experience.prompts, experience.rollout, rows)
        # The minibatch's responses may all be shorter than the whole batch's longest: the mask keeps that width.
        now = self.policy.evaluate(batch, entropy=params.entropy_coef > 0)
        values = self.values(batch, now)
        fit = policy_loss(
            now.logprobs, experience.logprobs[rows], experience.advantages[rows], batch.mask, params.clip_range
        )
        misfit = value_loss(
            values, experience.values[rows], experience.returns[rows], batch.mask, params.value_clip_range
        )
        loss = fit.loss + params.value_coef * misfit
        if now.entropy is not None:
            loss = loss - params.entropy_coef * masked_mean(now.entropy, batch.mask)
        _finite(float(loss.detach()), "the loss")
        apart = float(fit.approximate_kl)
        measured = {
            "policy_loss": float(fit.loss.detach()),
            "value_loss": float(misfit.detach()),
            "approximate_kl": apart,
            "clip_fraction": float(fit.clip_fraction),
            "ratio_max": float(fit.ratio_max),
            "grad_norm": 0.0,
            "updates": 0.0,
        }
        if params.max_kl is not None and apart > params.max_kl:
            return measured, False
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        # A value model has its own norm: its early, large errors must not shrink the policy's steps.
        groups = [self.policy_weights, self.value_weights]
        if self.value_model is None:
            groups = [self.policy_weights + self.value_weights]
        norms = [float(nn.utils.clip_grad_norm_(group, params.max_grad_norm)) for group in groups]
        for norm in norms:
            _finite(norm, "the gradient's norm")
        self.optimizer.step()
        return measured | {"grad_norm": norms[0], "updates": 1.0}, True

    # -- the pieces ---------------------------------------------------------------------------------------------------

    def shuffled(self, rows: int) -> list[Tensor]:
        """Row numbers in a new random order, cut into minibatches (the last may be smaller)."""
        order = torch.randperm(rows, generator=self.generator).to(self.model.device)
        return list(torch.split(order, self.params.minibatch_size))

    def batch(self, prompts: list[list[int]], rollout: Rollout, rows: Tensor) -> Batch:
        """The chosen rows, packed."""
        return pack([prompts[i] for i in rows.tolist()], rollout.tokens[rows], rollout.mask[rows], self.pad)

    def values(self, batch: Batch, scores: Scores) -> Tensor:
        """Values [rows, response length]: of the head, which `scores` has, or of the value model."""
        if self.value_model is None:
            if scores.values is None:
                raise ValueError("the policy has no value head and there is no value model")
            return scores.values
        return batch.spread(self.value_model.at(batch.ids, batch.rows, batch.columns))

    def judged(self, prompts: list[list[int]], rollout: Rollout, rows: Tensor) -> list[list[int]]:
        """What the reward model reads: prompt and response as the chat template closes them.

        A response cut by the length limit gets the end token it lacks, as in the texts the model was trained on;
        `missing_eos_penalty` is what answers for the cut.
        """
        sequences = []
        for i in rows.tolist():
            response: list[int] = rollout.tokens[i, rollout.mask[i]].tolist()
            end = [] if bool(rollout.ended[i]) else [self.eos]
            sequences.append([*prompts[i], *response, *end, *self.closing])
        return sequences

    def adjusted(self, scores: Tensor, ended: Tensor) -> Tensor:
        """Scores as rewards: normalized by the first batch's mean and deviation, clipped, less the end penalty."""
        params = self.params
        if self.score_shift is None:
            deviation = float(scores.std(unbiased=False))
            # One row, or equal scores: there is no scale to take.
            self.score_shift = (float(scores.mean()), deviation if deviation > 1e-6 else 1.0)
        mean, deviation = self.score_shift
        rewards = (scores - mean) / deviation
        if params.reward_clip is not None:
            rewards = rewards.clamp(-params.reward_clip, params.reward_clip)
        return rewards - params.missing_eos_penalty * (~ended).to(rewards.dtype)

    def _adapter_off(self) -> Any:  # noqa: ANN401 -- peft is untyped
        stack = ExitStack()
        if self.peft is not None:
            stack.enter_context(self.peft.disable_adapter())
        return stack

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    # -- the run ------------------------------------------------------------------------------------------------------

    def train(self) -> Trained:
        """All iterations; the policy, adapters merged, and the last iteration's figures."""
        metrics: dict[str, float] = {}
        tokens = 0
        with quick_attention(*(m for m in self.attending if m is not None)):
            for iteration in range(self.params.iterations):
                self.context.check()
                factor = learning_rate_factor(
                    iteration, self.params.iterations, self.params.warmup, decay=self.params.schedule == "linear"
                )
                for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                    group["lr"] = rate * factor
                experience = self.collect()
                metrics = self.describe(experience) | self.update(experience)
                metrics |= {"kl_coef": self.controller.coefficient, "learning_rate": self.rates[0] * factor}
                self.controller = self.controller.after(metrics["kl"])
                tokens += int(experience.rollout.mask.sum())
                self.context.log(iteration + 1, self.params.iterations, metrics)
        model = self.model
        if self.peft is not None:
            model = self.peft.merge_and_unload()
        for weight in model.parameters():
            _finite(float(weight.detach().sum()), "a weight")
        model.requires_grad_(True)
        return Trained(
            model=model,
            tokenizer=self.tokenizer,
            metrics={
                **{f"final_{k}": metrics[k] for k in ("reward", "kl", "entropy", "length", "eos_fraction")},
                **{f"{part}_seconds": spent for part, spent in self.seconds.items()},
                "iterations": float(self.params.iterations),
                "sampled_tokens": float(tokens),
                "prompts_left_out": float(self.left_out),
            },
        )

    @staticmethod
    def describe(experience: Experience) -> dict[str, float]:
        """The figures of a rollout batch, before the policy learns from it."""
        mask, logprobs = experience.rollout.mask, experience.logprobs
        k1, k3 = kl_k1(logprobs, experience.reference), kl_k3(logprobs, experience.reference)
        gap = (experience.rollout.logprobs - logprobs).abs()
        return {
            "reward": float(experience.scores.mean()),
            "kl": float(torch.where(mask, k1, 0.0).sum(1).mean()),
            "kl_k3": float(torch.where(mask, k3, 0.0).sum(1).mean()),
            "entropy": float(masked_mean(experience.entropy, mask)),
            "explained_variance": explained_variance(experience.values, experience.returns, mask),
            "length": float(mask.sum(1).float().mean()),
            "eos_fraction": float(experience.rollout.ended.float().mean()),
            "sampler_gap": float(masked_mean(gap, mask)),
        }


def _same_tokenizer(policy: LoadedModel, reward: LoadedModel) -> None:
    if policy.tokenizer.get_vocab() != reward.tokenizer.get_vocab():
        raise UserError(
            f"ppo: the reward model in {reward.folder} has another tokenizer than the policy in {policy.folder}; "
            "train the reward model from the same base model"
        )


def _end_and_pad(policy: LoadedModel) -> tuple[int, int]:
    eos, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    if eos is None:
        raise UserError(f"ppo: the tokenizer in {policy.folder} names no end token (eos_token)")
    return int(eos), int(eos if pad is None else pad)
