"""One run of an online method in a process of its own, by this project or by TRL's trainer, as a file of work says.

    python benchmarks/_plain_online.py work.json

Both get the same models, prompts and numbers. After each iteration a line of JSON with its figures goes out; a paced
run then waits for a line on its input, so that two runs can take turns.

PPO is TRL 1.12's `trl.experimental.ppo`, the last there was; its folder comes first on PYTHONPATH then.
"""

import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FAR", "OLD_TRL", "ppo_trl"]

OLD_TRL = "1.12.0"
FAR = 1e9
"""A bound that is never reached: TRL's PPO clips no gradient, and stops at no distance from the sampling policy."""

Work = dict[str, Any]


class Reporter:
    """Sends an iteration's figures with the seconds since the one before, and waits where the run is paced."""

    def __init__(self, paced: bool) -> None:
        self.paced = paced
        self._start()

    def _start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self, figures: Mapping[str, float]) -> None:
        spent = {"wall_s": time.perf_counter() - self.wall, "cpu_s": time.process_time() - self.cpu}
        print(json.dumps({**figures, **spent}), flush=True)
        if self.paced and not sys.stdin.readline():
            # The other side of the pipe has ended.
            os._exit(0)
        self._start()


def _load(work: Work, role: str) -> Any:  # a LoadedModel, whose models are untyped
    from harness.models import load_model

    loaded = load_model(Path(work["folders"][role]), head="reward" if role == "reward" else "causal")
    if work["never_ends"]:
        # An end that nobody says: every answer is as long as the limit.
        loaded.tokenizer.eos_token = work["never_ends"]
    return loaded


def ours(work: Work, report: Reporter) -> None:
    """By the method of this project."""
    import datasets

    from harness.method import Context, Inputs, find_method

    method = find_method(work["method"])
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(
            {role: Path(folder) for role, folder in work["folders"].items()},
            lambda role, _: _load(work, role),
            datasets.Dataset.from_list(work["prompts"]),
        )
        context = Context(work["seed"], Path(scratch), work["precision"], lambda _step, _total, f: report(f))
        method().run(inputs, method.params.model_validate(work["settings"]), context)


def _token_ids(work: Work, tokenizer: Any) -> list[dict[str, list[int]]]:  # untyped
    texts = [
        tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in work["prompts"]
    ]
    return [{"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in texts]


def _closed(model: Any, tokenizer: Any) -> Any:  # transformers is untyped
    """A reward model for TRL that scores an answer as ours does: closed as the chat template closes it.

    TRL reads the score at the answer's last token; this project's reward models are trained on, and read at, the end of
    the closed dialogue, and an answer that the length limit cut gets its end token first.
    """
    import torch

    from methods._ppo_models import closing_tokens

    eos, closing = tokenizer.eos_token_id, closing_tokens(tokenizer)

    class Closed(torch.nn.Module):
        def __init__(self, trunk: Any) -> None:  # untyped
            super().__init__()
            self.trunk = trunk

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, **kwargs: Any) -> Any:  # untyped
            rows = torch.arange(len(input_ids))
            last = input_ids.shape[1] - 1 - attention_mask.flip(1).int().argmax(1)
            cut = input_ids[rows, last] != eos
            more = len(closing) + 1
            ids, seen = (torch.nn.functional.pad(t, (0, more)) for t in (input_ids, attention_mask))
            end = last.clone()
            for token in [eos, *closing]:
                added = rows[cut] if token == eos else rows
                end[added] += 1
                ids[added, end[added]], seen[added, end[added]] = token, True
            places = seen.cumsum(1) - seen.long()
            found = self.trunk(input_ids=ids, attention_mask=seen, position_ids=places, **kwargs)
            hidden = found.hidden_states[-1]
            hidden[rows, last] = hidden[rows, end]
            found.hidden_states = (hidden[:, :-more],)
            return found

    setattr(model, model.base_model_prefix, Closed(model.base_model))
    return model


def _arguments(work: Work, output: str) -> dict[str, Any]:
    """What both of TRL's configurations take alike: nothing saved, printed or sent."""
    settings = work["settings"]
    return {
        "output_dir": output,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        # AdamW's, as this project's PPO has it.
        "adam_beta2": 0.95,
        "temperature": settings["temperature"],
        "seed": work["seed"],
        "use_cpu": True,
        "bf16": work["precision"] == "bfloat16",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }


def _callback(see: Any) -> Any:  # transformers is untyped
    from transformers import TrainerCallback

    class Seen(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_log(self, _args: object, _state: object, _control: object, logs: dict[str, float], **_: object) -> None:
            see(logs)

    return Seen()


def _quicker_sampling(model: Any, ids: Any) -> None:  # transformers is untyped
    """Let `generate` compute in bfloat16 where that is quicker: TRL's autocast is around training only.

    Autocast casts every weight at every token, so on some machines fp32 is.
    """
    import torch

    plain = model.generate

    def cast(*args: Any, **kwargs: Any) -> Any:  # untyped
        with torch.autocast("cpu", torch.bfloat16):
            return plain(*args, **kwargs)

    def seconds(generate: Callable[..., Any]) -> float:
        start = time.process_time()
        generate(input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=4, max_new_tokens=4)
        return time.process_time() - start

    for way in (plain, cast):
        seconds(way)
    if seconds(cast) < seconds(plain):
        model.generate = cast


def ppo_trl(work: Work, report: Callable[[Mapping[str, float]], None]) -> Any:  # transformers is untyped
    """By TRL 1.12's PPO; the policy that it leaves."""
    import datasets
    import torch
    import trl

    if trl.__version__ != OLD_TRL:
        raise SystemExit(f"this is trl {trl.__version__}; PPO was last in {OLD_TRL}: set PYTHONPATH to its folder")
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    settings, size = work["settings"], work["settings"]["rollout_batch_size"]
    policy, reward = _load(work, "policy"), _load(work, "reward")
    tokenizer = policy.tokenizer
    tokenizer.padding_side = "left"
    value = copy.deepcopy(reward.model)
    reference = _load(work, "policy").model
    if work["precision"] == "bfloat16":
        # Frozen, so their weights need not be fp32.
        reference.to(torch.bfloat16)
        reward.model.to(torch.bfloat16)
        _quicker_sampling(policy.model, torch.randint(3, len(tokenizer), (size, 32)))
    scored = reward.model if work["never_ends"] else _closed(reward.model, tokenizer)

    def see(logs: Mapping[str, float]) -> None:
        if "objective/scores" in logs:
            ended = logs["val/num_eos_tokens"] / size
            # Its score has the penalty in it.
            score = logs["objective/scores"] + settings["missing_eos_penalty"] * (1 - ended)
            report({"reward": score, "kl": logs["objective/kl"], "eos_fraction": ended})

    with tempfile.TemporaryDirectory() as scratch:
        config = PPOConfig(
            **_arguments(work, scratch),
            # Steps are taken once in gradient_accumulation_steps micro-batches, whatever num_mini_batches says.
            per_device_train_batch_size=size,
            gradient_accumulation_steps=1,
            num_mini_batches=size // settings["minibatch_size"],
            num_ppo_epochs=settings["epochs"],
            total_episodes=settings["iterations"] * size,
            response_length=settings["max_new_tokens"],
            stop_token=None if work["never_ends"] else "eos",
            missing_eos_penalty=settings["missing_eos_penalty"],
            kl_coef=settings["kl_coef"],
            cliprange=settings["clip_range"],
            cliprange_value=settings["value_clip_range"],
            vf_coef=settings["value_coef"],
            gamma=settings["gamma"],
            lam=settings["lam"],
            num_sample_generations=0,
        )
        PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy.model,
            ref_model=reference,
            reward_model=scored,
            value_model=value,
            train_dataset=datasets.Dataset.from_list(_token_ids(work, tokenizer)),
            callbacks=[_callback(see)],
        ).train()
    return policy.model


def grpo_trl(work: Work, report: Callable[[Mapping[str, float]], None]) -> None:
    """By the installed TRL's GRPO: one update for each batch of answers."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    settings = work["settings"]
    policy, reward = _load(work, "policy"), _load(work, "reward")
    tokenizer = policy.tokenizer
    policy.model.generation_config.eos_token_id = tokenizer.eos_token_id
    low = work["precision"] == "bfloat16"
    if low:
        # Frozen, so its weights need not be fp32.
        import torch

        reward.model.to(torch.bfloat16)

    def see(logs: Mapping[str, float]) -> None:
        if "reward" in logs:
            report({"reward": logs["reward"], "kl": logs.get("kl", 0.0)})

    with tempfile.TemporaryDirectory() as scratch:
        arguments = _arguments(work, scratch)
        config = GRPOConfig(
            **arguments,
            # Of the reference alone, which it reads from the policy's folder.
            model_init_kwargs={"dtype": "bfloat16" if low else "float32"},
            max_steps=settings["iterations"],
            per_device_train_batch_size=settings["rollout_batch_size"],
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            num_iterations=1,
            num_generations=settings["group_size"],
            max_completion_length=settings["max_new_tokens"],
            loss_type="grpo",
            beta=settings["beta"],
            epsilon=settings["clip_range"],
            max_grad_norm=settings["max_grad_norm"],
            dataloader_pin_memory=False,
        )
        GRPOTrainer(
            model=policy.model,
            reward_funcs=[reward.model],
            reward_processing_classes=[reward.tokenizer],
            args=config,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(work["prompts"]),
            callbacks=[_callback(see)],
        ).train()


SIDES = {"ours": ours, "ppo_trl": ppo_trl, "grpo_trl": grpo_trl}


def main() -> None:
    """Do the work of the file."""
    import torch

    work = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(work["threads"])
    # What a library prints must not stand among the figures.
    report = Reporter(work["paced"])
    SIDES[work["side"]](work, report)


if __name__ == "__main__":
    main()
