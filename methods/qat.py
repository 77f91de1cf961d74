"""Quantisation-aware training (Jacob et al. 2018, arXiv:1712.05877; for language models LLM-QAT, arXiv:2305.17888).

Every forward pass of the training rounds weights, and for the dynamic schemes each token's activations, as the deployed
model will; the gradient passes the rounding as if it were not there. The result is saved as `quantize` saves the scheme
of the same name: at equal bits the two differ in the weights alone. Grids are symmetric: torchao trains no others.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from harness.method import Context, Inputs, Method, Trained, tunable
from methods._quant_format import Grid, Matrix, check_groups, linear_names
from methods._quant_round import nearest, prepare_training, unprepare
from methods._quant_verify import Before, Witness, finish_quantised, need_libraries
from methods._rows import instruction_rows
from methods._sft_trainer import make_trainer
from methods._trl import TrainingParams, finish, need_dataset, train
from methods.quantize import grid_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["QAT", "QATParams"]


class QATParams(TrainingParams):
    """Settings of quantisation-aware training."""

    scheme: Literal["int8_weight_only", "int8_dynamic", "int4_weight_only", "int4_dynamic"] = Field(
        "int4_weight_only",
        description="what the model is rounded to, as in `quantize`: 8- or 4-bit weights; dynamic: each token's "
        "activations in 8 bits too",
    )
    granularity: Literal["channel", "group"] | None = Field(
        None,
        description="what shares a scale: a row of a matrix, or group_size columns of it; null: rows for 8 bits, "
        "groups for 4",
    )
    group_size: int = Field(64, ge=8, description="columns of a group; must divide every row of every matrix")
    dataset: str = Field("instructions", description="training set of kind instructions (prompt, completion)")
    learning_rate: float = Field(
        2e-5, gt=0, description="peak learning rate of AdamW", json_schema_extra=tunable(1e-6, 2e-4, log=True)
    )

    @model_validator(mode="after")
    def _trains_all(self) -> Self:
        if self.adapts:
            # Merged, adapters move weights off the grid that the rest was trained on.
            raise ValueError(
                "qat rounds the weights it trains, which adapters leave alone: expected lora_rank 0, no other adapter"
            )
        return self


class QAT(Method[QATParams]):
    """Maximum likelihood of the demonstrated answers, by a policy whose weights are rounded all along."""

    name = "qat"
    summary = "quantisation-aware training: imitate the demonstrated answers with weights in 8 or 4 bits"
    paper = "Jacob et al. 2018, arXiv:1712.05877; Liu et al. 2023, arXiv:2305.17888"
    version = 1
    params = QATParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"
    compresses = True
    libraries = ("torchao", "compressed-tensors")

    @classmethod
    def imports(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """What rounds, and what packs."""
        return dict.fromkeys(("torchao", "compressed_tensors"), "compression")

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """True: no gradient reaches weights that are integers."""
        return True

    @classmethod
    def runs_on(cls, settings: Mapping[str, object]) -> frozenset[str]:
        """torch, as it is or compiled by inductor; TensorRT knows none of the kernels."""
        return frozenset({"eager", "inductor"})

    def run(self, inputs: Inputs, params: QATParams, context: Context) -> Trained:
        """Train the policy rounded, convert it, write, load again and check.

        Metrics: those of training and of `finish_quantised`; `conversion_difference` is the mean absolute difference
        (nats) of the converted model to the one that was trained.

        Raises:
            UserError: a package, the dataset or a usable row is missing; a group size does not fit; the policy cannot
                be quantised.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
            RuntimeError: the converted model is not the one that was trained.
        """
        from methods._ppo_attention import quick_attention

        need_libraries("torchao", "compressed_tensors")
        grid = grid_of(params.scheme, params.granularity, params.group_size, symmetric=True)
        policy = inputs.load("policy")
        dataset = need_dataset(inputs, self.name)
        names = linear_names(policy.model, head=False)
        check_groups(policy.model, names, grid)
        rows = instruction_rows(dataset, policy.tokenizer, params.max_length)
        before = Before.of(policy)
        prepare_training(policy.model, names, grid)
        trainer = make_trainer(policy.model, policy.tokenizer, rows, params, params.learning_rate, context)
        with quick_attention(policy.model):
            metrics = train(trainer, context, {})
        metrics["rows_left_out"] = float(len(dataset) - len(rows))
        model = finish(trainer)
        metrics["conversion_difference"], matrices = _convert(model, names, grid)
        return finish_quantised(model, policy.tokenizer, matrices, grid, context.scratch, before, metrics)


def _convert(model: "PreTrainedModel", names: list[str], grid: Grid) -> tuple[float, dict[str, Matrix]]:
    trained = Witness.of(model, names)
    unprepare(model, names)
    matrices = nearest(model, names, grid)
    return trained.compare(model, grid), matrices
