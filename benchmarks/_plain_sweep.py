"""One configuration as a plain script runs it, in a process of its own: trained by TRL, scored by lm-eval's `hf` model.

    python benchmarks/_plain_sweep.py job.json

A job names a method (or none) with its settings, the folders it starts from, and documents to score. What it found is
written as the file of the job says. PPO is TRL 1.12's, whose folder comes first on PYTHONPATH then.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.method import DatasetKind

__all__: list[str] = []

Job = dict[str, Any]


def _arguments(job: Job) -> dict[str, Any]:
    settings = job["settings"]
    return {
        "output_dir": str(Path(job["out"]).with_suffix(".trainer")),
        "max_steps": settings["steps"],
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": settings["gradient_accumulation"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["lr_scheduler"],
        "warmup_steps": settings["warmup_fraction"],
        "max_grad_norm": settings["max_grad_norm"],
        "max_length": settings["max_length"],
        "seed": job["seed"],
        "use_cpu": True,
        "bf16": job["precision"] == "bfloat16",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _rows(kind: "DatasetKind") -> Any:  # a Dataset
    from harness.data import DataSource, load_training_set

    rows, _ = load_training_set(kind, kind, DataSource("bundled"))
    return rows.remove_columns([name for name in rows.column_names if name == "constraints"])


def _sft(job: Job, model: Any, tokenizer: Any) -> Any:  # transformers and trl are untyped
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**_arguments(job))
    trainer = SFTTrainer(model, arguments, train_dataset=_rows("instructions"), processing_class=tokenizer)
    trainer.train()
    return trainer.model


def _reward_model(job: Job, model: Any, tokenizer: Any) -> Any:  # the same
    from trl import RewardConfig, RewardTrainer

    arguments = RewardConfig(**_arguments(job), center_rewards_coefficient=job["settings"]["center_rewards"])
    trainer = RewardTrainer(model, arguments, train_dataset=_rows("preferences"), processing_class=tokenizer)
    trainer.train()
    return trainer.model


def _dpo(job: Job, model: Any, tokenizer: Any) -> Any:  # the same
    from trl import DPOConfig, DPOTrainer

    # Each row is seen once, so the reference costs the same before the training as in it.
    arguments = DPOConfig(**_arguments(job), beta=job["settings"]["beta"])
    trainer = DPOTrainer(model, args=arguments, train_dataset=_rows("preferences"), processing_class=tokenizer)
    trainer.train()
    return trainer.model


def _ppo(job: Job) -> Any:  # the same
    from _plain_online import ppo_trl

    folders = {"policy": job["start"], "reward": job["reward"]}
    prompts = [{"prompt": row["prompt"]} for row in _rows("prompts")]
    return ppo_trl({**job, "folders": folders, "prompts": prompts, "never_ends": None}, lambda _figures: None)


TRAINED = {"sft": _sft, "reward_model": _reward_model, "dpo": _dpo}


def train(job: Job) -> tuple[Any, Any]:
    """The model that the job's method leaves, and its tokenizer."""
    from harness.models import load_model

    method = job["method"]
    loaded = load_model(Path(job["start"]), head="reward" if method == "reward_model" else "causal")
    if method is None:
        return loaded.model, loaded.tokenizer
    if method == "ppo":
        return _ppo(job), loaded.tokenizer
    return TRAINED[method](job, loaded.model, loaded.tokenizer), loaded.tokenizer


def score(job: Job, model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:  # the same
    """Task → metric → mean over the job's documents, by lm-eval's own model and tasks."""
    import lm_eval.evaluator
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from harness.data import DataSource

    scored: dict[str, dict[str, float]] = {}
    lm = HFLM(
        model.to(getattr(torch, job["dtype"])).eval(),
        tokenizer=tokenizer,
        batch_size=job["batch"],
        logits_cache=job["cache"],
    )
    manager = TaskManager()
    with DataSource("bundled").as_hub(), contextlib.redirect_stderr(io.StringIO()):
        tasks = manager.load(list(job["tasks"]))["tasks"]
    for name, settings in job["tasks"].items():
        task = tasks[name]
        task.set_config("num_fewshot", settings.get("num_fewshot", task.config.num_fewshot or 0))
        if "max_gen_toks" in settings:
            task.set_config("generation_kwargs", {"max_gen_toks": settings["max_gen_toks"]}, update=True)
        task.set_fewshot_seed(1234)
        found = lm_eval.evaluator.evaluate(
            lm, {"tasks": {name: task}}, samples={name: job["documents"][name]}, bootstrap_iters=0
        )
        scored[name] = _means(found["samples"][name])
    return scored


def _means(samples: list[Mapping[str, Any]]) -> dict[str, float]:
    from harness._documents import metric_name

    filters = {str(s["filter"]) for s in samples}
    sums: dict[str, list[float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            sums.setdefault(metric_name(metric, str(sample["filter"]), filters), []).append(float(sample[metric]))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def main() -> None:
    """Do the job of the file."""
    import torch

    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    start = time.perf_counter()
    model, tokenizer = train(job)
    trained = time.perf_counter()
    if job["save"]:
        model.save_pretrained(job["save"])
        tokenizer.save_pretrained(job["save"])
    scores = score(job, model, tokenizer) if job["tasks"] else {}
    found = {"train_s": trained - start, "score_s": time.perf_counter() - trained, "scores": scores}
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
