"""The training loop of distillation: batches of the dataset's or the student's own answers, and their losses."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from harness.method import Context
from methods._distill_loss import Losses, completion_losses
from methods._distill_models import Trunk
from methods._peft_model import adapted
from methods._rollout import sample
from methods._rows import training_order
from methods._trl import rows_wanted, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from methods.distill import DistillParams

__all__ = ["DistillTrainer", "make_trainer"]

Row = dict[str, list[int]]


class DistillTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """A Trainer whose loss needs a teacher. Rows are padded on the right, so a causal pass needs no mask."""

    def __init__(
        self,
        student: "PreTrainedModel",
        teacher: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        params: "DistillParams",
        context: Context,
        **kwargs: object,
    ) -> None:
        self.eos, self.pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
        super().__init__(data_collator=self._collate, **kwargs)
        self.options, self.precision = params, context.precision
        # Adapters are inside the student's own layers: its trunk runs them.
        self.student, self.teacher = Trunk.of(student), Trunk.of(teacher)
        # Spread evenly and not tossed for: of 25 tosses for a fifth, none may come up.
        self._due = random.Random(context.seed).random()
        self._generator = torch.Generator().manual_seed(context.seed)
        self._total_train_tokens = 0
        self.sampled_tokens = 0
        self._sums: dict[str, float] = {}
        self.kl: list[float] = []
        # Means over the tokens of all a step's forward passes, where their number is known before the first.
        self.model_accepts_loss_kwargs = params.on_policy == 0.0

    def _collate(self, rows: list[Row]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        labels = torch.full((len(rows), longest), -100)
        for place, row in enumerate(rows):
            ids[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels[place, : len(row["labels"])] = torch.tensor(row["labels"])
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {"input_ids": ids, "labels": labels, "lengths": lengths}

    def _prepare_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        # Sampling is here and not in the loss, which runs under an autocast that would keep weights cast without
        # gradient for the pass that needs one.
        batch: dict[str, Any] = super()._prepare_inputs(inputs)
        self._due += self.options.on_policy
        batch["sampled"] = self._due >= 1.0
        if batch["sampled"]:
            self._due -= 1.0
            batch |= self._answered(batch)
        self._total_train_tokens += int(batch["lengths"].sum())
        return batch

    def _answered(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the student's own answers to its prompts."""
        ids, labels = batch["input_ids"], batch["labels"]
        starts = (labels != -100).int().argmax(1).tolist()
        prompts = [row[:start] for row, start in zip(ids.tolist(), starts, strict=True)]
        model = self.student.model
        training = model.training
        model.eval()
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            rollout = sample(
                model,
                prompts,
                max_new_tokens=self.options.max_new_tokens,
                temperature=1.0,
                eos=self.eos,
                pad=self.pad,
                generator=self._generator,
            )
        model.train(training)
        answers = [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask, strict=True)]
        self.sampled_tokens += sum(map(len, answers))
        rows = [
            {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return {name: tensor.to(ids.device) for name, tensor in self._collate(rows).items()}

    def compute_loss(
        self,
        model: object,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: "Tensor | int | None" = None,
    ) -> Tensor:
        """The mean loss of a batch's completion tokens: alpha · temperature² · divergence + (1 - alpha) · hard loss.

        A sampled batch has no right answers, so no hard loss.
        """
        options = self.options
        found, count = self._losses(inputs["input_ids"], inputs["labels"])
        soft = options.alpha * options.temperature**2 * found.soft
        loss = soft if inputs["sampled"] else soft + (1.0 - options.alpha) * found.hard
        self._add("kl", float(found.soft.detach()), count)
        if not inputs["sampled"]:
            self._add("hard_loss", float(found.hard.detach()), count)
        return loss / (count if num_items_in_batch is None else num_items_in_batch)

    def _losses(self, ids: Tensor, labels: Tensor) -> tuple[Losses, int]:
        options = self.options
        mask = labels[:, 1:] != -100
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            with torch.inference_mode():
                taught = self.teacher.at(ids, mask)
            found = completion_losses(
                self.student.at(ids, mask),
                # Out of inference mode, or the checkpoint of a chunk could not keep it.
                taught.clone(),
                (self.student.head, self.teacher.head),
                labels[:, 1:][mask],
                kind=options.divergence,
                beta=options.beta,
                temperature=options.temperature,
            )
        return found, int(mask.sum())

    def _add(self, name: str, total: float, count: int) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._sums[f"{name} of"] = self._sums.get(f"{name} of", 0.0) + count

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        """Add the means of the step, per token: `kl` (the divergence, nats) and `hard_loss`."""
        if "loss" in logs:
            for name in ("kl", "hard_loss"):
                if name in self._sums:
                    logs[name] = self._sums[name] / self._sums[f"{name} of"]
            if "kl" in logs:
                self.kl.append(logs["kl"])
            self._sums.clear()
        super().log(logs, *args, **kwargs)


def make_trainer(
    student: "PreTrainedModel",
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[Row],
    params: "DistillParams",
    context: Context,
) -> DistillTrainer:
    """The trainer of a run, over the rows in the order of the seed; with LoRA, adapters are put into the student."""
    import datasets

    order = training_order(len(rows), rows_wanted(params), context.seed)
    arguments = training_arguments(
        TrainingArguments,
        params,
        params.learning_rate,
        context,
        student.device.type,
        remove_unused_columns=False,
        gradient_checkpointing_kwargs={"use_reentrant": False} if params.gradient_checkpointing else None,
    )
    teacher.eval().requires_grad_(False)
    return DistillTrainer(
        student,
        teacher,
        tokenizer,
        params,
        context,
        model=adapted(student, params, context.seed),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([rows[i] for i in order]),
        processing_class=tokenizer,
    )
