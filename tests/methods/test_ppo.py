"""PPO: its arithmetic by hand, its invariants, and that it raises a reward it can reach."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.errors import InfeasibleError, PrunedError, UserError
from harness.method import Inputs, LoadedModel, Trained, find_method
from harness.models import load_model, save_model
from methods import _shared_prompt
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
from methods._ppo_trainer import Trainer
from methods._rollout import sample
from methods.ppo import PPO, PPOParams
from tests.methods.helpers import WORDS, Log, make_context, turn

JUNK = float("nan")


def prompts(count: int = 24) -> Any:
    import datasets

    rows = [{"prompt": [turn("user", f"say {WORDS[i % len(WORDS)]} {'now ' * (i % 4)}{i}")]} for i in range(count)]
    return datasets.Dataset.from_list(rows)


@pytest.fixture(scope="module")
def reward_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model made by hand: it rises with the share of even token ids in the text.

    One layer whose attention weighs all places alike averages a mark that the embedding sets on even ids.
    """
    from transformers import LlamaForSequenceClassification

    base = load_model(tiny_model)
    config = base.model.config.__class__(**{**base.model.config.to_dict(), "num_hidden_layers": 1, "num_labels": 1})
    config.tie_word_embeddings = False
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[::2, 0] = 1.0
        model.model.embed_tokens.weight[:, 1] = 1.0
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, 0] = 1.0
        attention.o_proj.weight[2, 0] = 1.0
        model.score.weight[0, 2] = 1.0
    folder = tmp_path_factory.mktemp("models") / "even"
    save_model(model, base.tokenizer, folder)
    return folder


def make_inputs(policy: Path, reward: Path, dataset: Any = None) -> Inputs:
    return Inputs(
        folders={"policy": policy, "reference": policy, "reward": reward},
        loader=lambda role, path: load_model(path, head="reward" if role == "reward" else "causal"),
        dataset=prompts() if dataset is None else dataset,
    )


SMALL: dict[str, Any] = {"rollout_batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "iterations": 2}


@pytest.fixture
def make(tiny_model: Path, reward_folder: Path, tmp_path: Path) -> Any:
    def build(precision: Any = "float32", seed: int = 0, **changes: Any) -> Trainer:
        context = make_context(tmp_path, Log(), seed=seed, precision=precision)
        return Trainer(make_inputs(tiny_model, reward_folder), PPOParams(**(SMALL | changes)), context)

    return build


@pytest.mark.parametrize("changes", [{}, {"value": "model"}, {"lora_rank": 4}], ids=["head", "model", "adapters"])
def test_what_rows_begin_with_is_computed_once_with_the_same_result(
    make: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for share in (True, False):
        with monkeypatch.context() as patched:
            if not share:
                patched.setattr(_shared_prompt, "_may_share", lambda _model: False)
            trainer = make(**changes, max_grad_norm=1e9)
        read: list[int] = []
        with quick_attention(*trainer.models.attending):
            experience = trainer.collect()
            trainer.models.trained.base_model.register_forward_hook(
                lambda _module, _args, out, read=read: read.append(out.last_hidden_state.shape[:2].numel())
            )
            trainer.learner.optimizer.step = lambda: None
            trainer.learner.step(experience, experience.minibatches[0])
        gradients = {n: p.grad for n, p in trainer.models.trained.named_parameters() if p.grad is not None}
        found.append((trainer.models.policy.share, experience, gradients, read[0]))
    (shared, one, gradients, tokens), (not_shared, other, wanted, plain) = found
    assert (shared, not_shared) == (True, False)
    assert tokens < plain
    assert torch.equal(one.rollout.tokens, other.rollout.tokens)
    for name in ("scores", "logprobs", "entropy", "values", "reference"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5, msg=name)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.5, -1.0, JUNK]])
    values = torch.tensor([[0.5, 0.4, 0.2], [0.1, 0.3, JUNK]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.8)
    # Row 1, backwards: 1 - 0.2 = 0.8; 0.9*0.2 - 0.4 + 0.72*0.8 = 0.356; 0.9*0.4 - 0.5 + 0.72*0.356 = 0.11632.
    # Row 2: -1 - 0.3 = -1.3; 0.5 + 0.9*0.3 - 0.1 + 0.72*(-1.3) = -0.266.
    torch.testing.assert_close(advantages, torch.tensor([[0.11632, 0.356, 0.8], [-0.266, -1.3, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.61632, 0.756, 1.0], [-0.166, -1.0, 0.0]]))


def test_gae_with_lambda_1_is_return_minus_value() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 7, generator=generator)
    mask = torch.ones(4, 7, dtype=torch.bool)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, to_go - values)
    torch.testing.assert_close(returns, to_go)


rows_and_masks = st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=30).filter(
    lambda pairs: any(inside for _, inside in pairs)
)


@settings(max_examples=60, deadline=None)
@given(rows_and_masks, st.sampled_from([0.0, 1e30, float("inf"), JUNK]))
def test_padding_never_enters_a_mean(pairs: list[tuple[float, bool]], junk: float) -> None:
    mask = torch.tensor([[inside for _, inside in pairs]])
    values = torch.tensor([[value if inside else junk for value, inside in pairs]])
    inside = torch.tensor([value for value, inside in pairs if inside])
    torch.testing.assert_close(masked_mean(values, mask), inside.mean(), atol=1e-4, rtol=1e-4)
    whitened = masked_whiten(values, mask)
    assert (whitened[~mask] == 0).all()
    assert math.isclose(float(whitened.sum()), 0.0, abs_tol=1e-2 * len(pairs))


def test_whitening_can_keep_the_mean() -> None:
    values = torch.tensor([[1.0, 3.0, JUNK]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(masked_whiten(values, mask), torch.tensor([[-1.0, 1.0, 0.0]]))
    torch.testing.assert_close(masked_whiten(values, mask, shift_mean=False), torch.tensor([[1.0, 3.0, 0.0]]))


def test_the_score_comes_at_the_last_token() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, JUNK, JUNK]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl, mask, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 9.7], [19.6, 0.0, 0.0]]))


def test_both_kl_estimators_find_the_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 20, generator=generator).log_softmax(-1)
    draws = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    true = float((p.exp() * (p - q)).sum())
    k1, k3 = kl_k1(p[draws], q[draws]), kl_k3(p[draws], q[draws])
    assert math.isclose(float(k1.mean()), true, rel_tol=0.03)
    assert math.isclose(float(k3.mean()), true, rel_tol=0.03)
    assert (k3 >= 0).all()
    assert (k1 < 0).any()


@pytest.mark.parametrize(
    ("advantage", "ratio", "flows"),
    [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 0.5, False), (-1.0, 1.5, True), (1.0, 1.1, True)],
)
def test_clipping_stops_the_gradient_where_the_ratio_has_gone_far_enough(
    advantage: float, ratio: float, flows: bool
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.tensor([[True]])
    result = policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, clip_range=0.2)
    result.loss.backward()
    assert logprobs.grad is not None
    assert float(logprobs.grad) == pytest.approx(-advantage * ratio if flows else 0.0)
    assert float(result.clip_fraction) == (0.0 if flows else 1.0)
    assert float(result.ratio_max) == pytest.approx(max(ratio, 1 / ratio))


def test_the_value_loss_is_clipped_to_the_worse_of_both() -> None:
    mask = torch.tensor([[True, True, False]])
    values = torch.tensor([[1.0, 0.1, JUNK]], requires_grad=True)
    loss = value_loss(values, torch.zeros(1, 3), torch.tensor([[1.0, 1.0, JUNK]]), mask, clip_range=0.2)
    # The first value is right, yet further than 0.2 from the old one: it counts as 0.2. The second counts as it is.
    assert float(loss.detach()) == pytest.approx(0.5 * (0.8**2 + 0.9**2) / 2)
    loss.backward()
    assert values.grad is not None
    assert values.grad[0, 0] == 0
    assert values.grad[0, 1] == pytest.approx(-0.45)


def test_explained_variance() -> None:
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, JUNK]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 4), 7.0), returns, mask) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(1, 4), mask) == 0.0


def test_the_adaptive_coefficient_moves_towards_its_target() -> None:
    start = AdaptiveKl(0.1, target=6.0)
    assert start.after(60.0).coefficient == pytest.approx(0.1 * 1.02)
    assert start.after(0.0).coefficient == pytest.approx(0.1 * 0.98)
    assert start.after(6.6).coefficient == pytest.approx(0.1 * 1.01)
    assert start.after(6.0).coefficient == 0.1
    assert FixedKl(0.1).after(60.0).coefficient == 0.1


def test_the_learning_rate_rises_then_holds_or_falls() -> None:
    assert [learning_rate_factor(i, 5, 0.4, decay=False) for i in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert [learning_rate_factor(i, 4, 0.0, decay=True) for i in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])


# -- invariants --------------------------------------------------------------------------------------------------------

KINDS = [
    pytest.param({}, id="head"),
    pytest.param({"value": "model"}, id="value-model"),
    pytest.param({"lora_rank": 4}, id="lora"),
    pytest.param({"temperature": 0.7}, id="temperature"),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("quick", [False, True])
def test_kl_starts_at_0_and_the_first_ratio_is_exactly_1(make: Any, precision: str, changes: Any, quick: bool) -> None:
    trainer = make(precision, **changes)
    with quick_attention(*(trainer.models.attending if quick else [])):
        experience = trainer.collect()
        assert torch.equal(experience.logprobs, experience.reference)
        assert float(experience.logprobs.sum()) < 0
        first, stepped = trainer.learner.step(experience, experience.minibatches[0])
        assert stepped
        assert first["ratio_max"] == 1.0
        assert first["approximate_kl"] == 0.0
        # A LoRA starts with B at 0: one step of a tiny rate may round to nothing, but not in float32.
        second, _ = trainer.learner.step(experience, experience.minibatches[1])
        assert second["ratio_max"] > 1.0 or precision == "bfloat16"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_equal_a_plain_forward_pass_of_each_row(make: Any, temperature: float) -> None:
    trainer = make(temperature=temperature)
    with quick_attention(*trainer.models.attending):
        experience = trainer.collect()
    for row, prompt in enumerate(experience.prompts):
        mask = experience.rollout.mask[row]
        response = experience.rollout.tokens[row, mask]
        with torch.no_grad():
            logits = trainer.models.trained(torch.tensor([prompt + response.tolist()])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / temperature).log_softmax(-1)
        found = expected.gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(experience.logprobs[row, mask], found, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(experience.rollout.logprobs[row, mask], found, atol=1e-4, rtol=1e-4)
        entropy = -(expected.exp() * expected).sum(-1)
        torch.testing.assert_close(experience.entropy[row, mask], entropy, atol=1e-4, rtol=1e-4)


def test_the_reward_model_reads_the_whole_chat(make: Any, reward_folder: Path) -> None:
    trainer = make()
    experience = trainer.collect()
    reward = load_model(reward_folder, head="reward")
    for row, prompt in enumerate(experience.prompts):
        response = experience.rollout.tokens[row, experience.rollout.mask[row]].tolist()
        if response[-1] == trainer.texts.eos:
            response.pop()
        newline = reward.tokenizer("\n", add_special_tokens=False)["input_ids"]
        whole = [*prompt, *response, trainer.texts.eos, *newline]
        with torch.no_grad():
            expected = reward.model(torch.tensor([whole])).logits[0, 0]
        torch.testing.assert_close(experience.scores[row], expected, atol=1e-5, rtol=1e-5)
    assert experience.scores.std() > 0.01


def test_only_cut_responses_pay_for_the_missing_end(make: Any) -> None:
    trainer = make(missing_eos_penalty=0.75, normalize_reward=False, reward_clip=2.0)
    adjusted = trainer.collector.adjusted(torch.tensor([1.0, 1.0, 5.0, -5.0]), torch.tensor([True, False, True, False]))
    assert adjusted.tolist() == [1.0, 0.25, 2.0, -2.75]


def test_scores_are_normalized_by_the_first_batch_only(make: Any) -> None:
    trainer = make(missing_eos_penalty=0.0)
    ended = torch.ones(2, dtype=torch.bool)
    assert trainer.collector.adjusted(torch.tensor([3.0, 7.0]), ended).tolist() == [-1.0, 1.0]
    assert trainer.collector.adjusted(torch.tensor([5.0, 9.0]), ended).tolist() == [0.0, 2.0]


def test_training_stops_where_the_policy_is_past_max_kl(make: Any) -> None:
    trainer = make(learning_rate=1e-3, max_kl=1e-9, epochs=5, warmup=0.0)
    summary = trainer.learner.update(trainer.collect())
    assert summary["updates"] == 1
    free = make(learning_rate=1e-3, max_kl=None, epochs=5, warmup=0.0)
    assert free.learner.update(free.collect())["updates"] == 10


@pytest.mark.parametrize("kind", ["head", "model"])
def test_values_learn_the_returns(make: Any, kind: str) -> None:
    trainer = make(value=kind, value_learning_rate=1e-2, value_clip_range=10.0, max_kl=None, learning_rate=1e-6)
    experience = trainer.collect()
    rows = torch.arange(8)
    losses = [trainer.learner.step(experience, rows)[0]["value_loss"] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {}])
def test_the_sampler_follows_the_policy(make: Any, changes: Any) -> None:
    trainer = make("bfloat16" if not changes else "float32", learning_rate=1e-2, **changes)
    assert trainer.models.sampler.model is not trainer.models.trained
    ids = torch.tensor([[5, 40, 77, 12]])

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad(), trainer.models.sampler.context():
            found: torch.Tensor = model(ids).logits.float()
            return found

    trainer.models.sampler.refresh()
    before = logits(trainer.models.sampler.model)
    torch.testing.assert_close(before, logits(trainer.models.trained), atol=1e-5, rtol=1e-5)
    experience = trainer.collect()
    trainer.learner.step(experience, experience.minibatches[0])
    trainer.models.sampler.refresh()
    after = logits(trainer.models.sampler.model)
    assert not torch.allclose(before, after, atol=1e-2)
    torch.testing.assert_close(after, logits(trainer.models.trained), atol=1e-4, rtol=1e-4)


# -- whole runs --------------------------------------------------------------------------------------------------------


def run(policy: Path, reward: Path, scratch: Path, *, precision: Any = "float32", seed: int = 0, **changes: Any) -> Any:
    log = Log()
    context = make_context(scratch, log, seed=seed, precision=precision)
    return PPO().run(make_inputs(policy, reward), PPOParams(**(SMALL | changes)), context), log


@pytest.mark.parametrize(
    ("precision", "changes"), [("float32", {}), ("bfloat16", {"lora_rank": 4, "kl_controller": "adaptive"})]
)
def test_two_runs_of_a_seed_are_equal_bit_for_bit(
    tiny_model: Path, reward_folder: Path, tmp_path: Path, precision: str, changes: Any
) -> None:
    settings_ = {"learning_rate": 1e-3, "epochs": 2, **changes}
    first, first_log = run(tiny_model, reward_folder, tmp_path, precision=precision, **settings_)
    torch.manual_seed(99)  # the process's own generator has no say
    again, again_log = run(tiny_model, reward_folder, tmp_path, precision=precision, **settings_)
    other, _ = run(tiny_model, reward_folder, tmp_path, precision=precision, seed=1, **settings_)
    assert first_log.steps == again_log.steps
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
    assert any(not torch.equal(w, other.model.state_dict()[n]) for n, w in first.model.state_dict().items())
    assert first.model.config._attn_implementation == "sdpa"


def even_share(trained: Trained | LoadedModel) -> float:
    """Share of even ids among the ordinary tokens the model answers with."""
    tokenizer: Any = trained.tokenizer
    ids = [tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in prompts()]
    rollout = sample(
        trained.model,
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ids] * 4,
        max_new_tokens=12,
        temperature=1.0,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        generator=torch.Generator().manual_seed(5),
    )
    tokens = rollout.tokens[rollout.mask & (rollout.tokens != tokenizer.eos_token_id)]
    return float((tokens % 2 == 0).float().mean())


@pytest.fixture(scope="module")
def steerable(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with an output layer of its own, 15 times larger than the tied one.

    The tied one is so small that hardly any hidden state makes the policy prefer a token, and LoRA leaves it as it is.
    """
    loaded = load_model(tiny_model)
    model: Any = loaded.model
    model.config.tie_word_embeddings = False
    weight = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(3))
    model.lm_head.weight = nn.Parameter(weight * 0.3)
    folder = tmp_path_factory.mktemp("models") / "steerable"
    save_model(model, loaded.tokenizer, folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"learning_rate": 3e-4}, id="full"),
        pytest.param({"learning_rate": 2e-3, "lora_rank": 8, "lora_alpha": 16.0}, id="lora"),
        pytest.param({"learning_rate": 5e-4, "value": "model"}, id="value-model"),
    ],
)
def test_it_raises_a_reward_within_reach(
    steerable: Path, reward_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    before = even_share(load_model(steerable))
    trained, log = run(
        steerable,
        reward_folder,
        tmp_path,
        iterations=15,
        rollout_batch_size=32,
        minibatch_size=16,
        epochs=2,
        max_new_tokens=12,
        kl_coef=0.01,
        missing_eos_penalty=0.0,
        **changes,
    )
    after = even_share(trained)
    assert 0.4 < before < 0.6
    assert after > before + 0.2
    reward = log.values("reward")
    assert sum(reward[-3:]) > sum(reward[:3])
    assert log.values("kl")[0] == 0.0
    assert log.values("kl")[-1] > 0.1
    assert not any("lora" in name for name in trained.model.state_dict())


def test_a_heavy_penalty_keeps_the_policy_near_the_reference(
    steerable: Path, reward_folder: Path, tmp_path: Path
) -> None:
    def last_kl(kl_coef: float) -> float:
        _, log = run(
            steerable,
            reward_folder,
            tmp_path,
            iterations=12,
            rollout_batch_size=32,
            minibatch_size=16,
            learning_rate=3e-4,
            epochs=2,
            kl_coef=kl_coef,
            max_new_tokens=12,
        )
        return sum(log.values("kl_k3")[-3:]) / 3

    assert last_kl(1.0) < 0.5 * last_kl(0.0)


def test_every_iteration_is_logged_in_full(tiny_model: Path, reward_folder: Path, tmp_path: Path) -> None:
    trained, log = run(tiny_model, reward_folder, tmp_path, iterations=3, schedule="linear", warmup=0.0)
    assert [(step, total) for step, total, _ in log.steps] == [(1, 3), (2, 3), (3, 3)]
    for _, _, metrics in log.steps:
        assert {
            *("reward", "kl", "kl_k3", "entropy", "clip_fraction", "policy_loss", "value_loss", "explained_variance"),
            *("length", "eos_fraction", "kl_coef", "ratio_max", "grad_norm", "learning_rate", "approximate_kl"),
        } <= metrics.keys()
        assert all(math.isfinite(v) for v in metrics.values())
    assert log.values("learning_rate") == pytest.approx([1e-5, 2e-5 / 3, 1e-5 / 3])
    assert trained.metrics["sampled_tokens"] > 0


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_reward_of_nan_is_infeasible(make: Any) -> None:
    trainer = make()
    with torch.no_grad():
        trainer.models.reward.head.weight.fill_(float("nan"))
    with pytest.raises(InfeasibleError, match="reward score"):
        trainer.collect()


def test_a_diverging_step_is_infeasible(make: Any) -> None:
    trainer = make()
    experience = trainer.collect()
    experience.advantages.fill_(float("inf"))
    with pytest.raises(InfeasibleError, match="the loss is"):
        trainer.learner.step(experience, experience.minibatches[0])


def test_the_deadline_ends_a_run(tiny_model: Path, reward_folder: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, Log(), deadline=0.0)
    with pytest.raises(PrunedError, match="deadline"):
        PPO().run(make_inputs(tiny_model, reward_folder), PPOParams(**SMALL), context)


def test_what_cannot_work_is_refused(tiny_model: Path, reward_folder: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path, Log())

    def build(**changes: Any) -> Trainer:
        return Trainer(make_inputs(tiny_model, reward_folder), PPOParams(**changes), context)

    with pytest.raises(UserError, match="raise max_prompt_tokens"):
        build(max_prompt_tokens=3)
    with pytest.raises(UserError, match="lower max_new_tokens"):
        build(max_new_tokens=5000)
    with pytest.raises(UserError, match="linear layer `score` of one label"):
        Trainer(
            Inputs(dict.fromkeys(("policy", "reference", "reward"), tiny_model), lambda _, p: load_model(p), prompts()),
            PPOParams(),
            context,
        )
    inputs = make_inputs(tiny_model, reward_folder)
    inputs.load("reward").tokenizer.add_tokens(["<|other|>"])
    with pytest.raises(UserError, match="another tokenizer"):
        Trainer(inputs, PPOParams(), context)
    with pytest.raises(ValueError, match="must not exceed"):
        PPOParams(minibatch_size=64)


def test_the_method_is_found_without_importing_torch() -> None:
    assert find_method("ppo") is PPO
    code = "import sys; from harness.method import find_method; find_method('ppo'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_policy_whose_logits_are_changed_further_is_refused(
    tiny_model: Path, reward_folder: Path, tmp_path: Path
) -> None:
    inputs = make_inputs(tiny_model, reward_folder)

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.randn(1)

    model: Any = inputs.load("policy").model
    head = Doubled(64, model.config.vocab_size, bias=False)
    model.set_output_embeddings(head)
    with pytest.raises(UserError, match="linear layer of the last hidden state"):
        Trainer(inputs, PPOParams(**SMALL), make_context(tmp_path, Log()))
