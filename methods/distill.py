"""Knowledge distillation: a student learns the next-token distributions of a larger or uncompressed teacher."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.errors import UserError
from harness.method import Context, Inputs, Trained, tunable
from methods._adapters import AdapterMethod, AdapterParams, finished
from methods._rows import instruction_rows
from methods._trl import need_dataset, train

__all__ = ["Distill", "DistillParams"]

_METRICS = {"kl": "kl", "hard_loss": "hard_loss"}


class DistillParams(AdapterParams):
    """Settings of knowledge distillation."""

    # The student's trunk is run by itself.
    soft_prompts: ClassVar[bool] = False

    dataset: str = Field("instructions", description="training set of kind instructions (prompt, completion)")
    teacher: str | None = Field(
        None,
        min_length=1,
        description="a recipe of the suite, base, or a model (bundled name, hub id, folder); null: the policy as it "
        "was before the recipe's first step that compressed it",
    )
    learning_rate: float = Field(
        2e-5,
        gt=0,
        description="peak learning rate of the optimizer; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 5e-4, log=True),
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl",
        description="forward_kl: KL(teacher || student), covers all the teacher does (arXiv:1503.02531); reverse_kl: "
        "KL(student || teacher), keeps to what it does most (arXiv:2306.08543); jsd: between them (arXiv:2306.13649)",
    )
    beta: float = Field(
        0.5, gt=0, lt=1, description="with divergence jsd: the teacher's share of the mixture both are compared to"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="divides the logits of both; the divergence is multiplied by its square, as gradients shrink so",
        json_schema_extra=tunable(1.0, 4.0),
    )
    alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of the divergence; 1 - alpha is that of cross-entropy with the dataset's answers",
        json_schema_extra=tunable(0.0, 1.0),
    )
    on_policy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of the batches, evenly spread, whose answers the student samples; these have no "
        "cross-entropy",
    )
    max_new_tokens: int = Field(64, ge=1, description="length limit of a sampled answer, tokens")
    student_layers: int | None = Field(
        None,
        ge=2,
        description="make the student of this many of the policy's layers, evenly spaced, first and last among them "
        "(arXiv:1910.01108); null: the policy is the student",
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.on_policy > 0 and self.alpha == 0:
            raise ValueError("a sampled batch has no cross-entropy, so with alpha 0 on_policy must be 0")
        if self.beta != 0.5 and self.divergence != "jsd":
            raise ValueError("beta needs divergence: jsd; the others do not use it")
        return self


class Distill(AdapterMethod[DistillParams]):
    """A student trained to the teacher's distributions at every token of the answers: the dataset's, or its own.

    Logged per step: `loss`; `kl`, the divergence at the temperature, not multiplied by its square; `hard_loss`,
    cross-entropy with the dataset's answers, absent where all batches were sampled; all nats per completion token.
    """

    name = "distill"
    summary = "knowledge distillation: learn a larger or uncompressed teacher's distributions"
    paper = "Hinton et al. 2015, arXiv:1503.02531; on-policy Agarwal et al. 2024, arXiv:2306.13649"
    version = 1
    params = DistillParams
    needs = frozenset({"policy", "teacher"})
    dataset_kind = "instructions"
    compresses = "student_layers"

    def run(self, inputs: Inputs, params: DistillParams, context: Context) -> Trained:
        """Train the policy, or the student made of its layers.

        Raises:
            UserError: no dataset, no usable row, no chat template; the teacher has another vocabulary, or is the
                student itself.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
        """
        from methods._distill_models import check_pair, check_sampling, keep_layers
        from methods._distill_trainer import make_trainer
        from methods._ppo_attention import quick_attention

        dataset = need_dataset(inputs, self.name)
        if params.student_layers is None and inputs.folders.get("teacher") == inputs.folders.get("policy"):
            raise UserError(
                "distill: the teacher is the student itself, from which it can learn nothing; name another teacher, "
                "set student_layers, or put a step before that compresses the policy"
            )
        student, teacher = inputs.load("policy"), inputs.load("teacher")
        check_pair(student, teacher)
        metrics: dict[str, float] = {"teacher_parameters": float(teacher.model.num_parameters())}
        if params.student_layers is not None:
            keep_layers(student.model, params.student_layers)
        metrics["student_parameters"] = float(student.model.num_parameters())
        if params.on_policy > 0:
            check_sampling(student.model)
        rows = instruction_rows(dataset, student.tokenizer, params.max_length)
        trainer = make_trainer(student.model, teacher.model, student.tokenizer, rows, params, context)
        with quick_attention(student.model, teacher.model):
            metrics |= train(trainer, context, _METRICS)
        last = trainer.kl[-max(1, params.steps // 10) :]
        metrics["final_kl"] = sum(last) / len(last)
        metrics["sampled_tokens"] = float(trainer.sampled_tokens)
        metrics["rows_left_out"] = float(len(dataset) - len(rows))
        return finished(trainer, student.tokenizer, params, metrics, context)
