"""Direct preference optimization: raise the margin of chosen over rejected answers against a frozen reference.

Its variants are other losses of the same log-ratios, and settings of the same method.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from harness.method import Context, tunable
from methods._adapters import AdapterParams
from methods._head import use_completion_head
from methods._pairs_method import PairRows, PairsMethod, Prepared, as_given
from methods._peft_model import with_adapters
from methods._reference_logprobs import PREPARATION, reference_of_pairs
from methods._rows import training_order
from methods._trl import rows_wanted, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

__all__ = ["DPO", "DPOParams"]

_SMOOTHED = ("cdpo", "robust", "exo_pair", "aot", "aot_unpaired")
_PAPER_TAU = 0.05


def _is_paper_tau(value: float) -> bool:
    # Left out of a stage's stored settings, so that keys from before there was a choice stay.
    return value == _PAPER_TAU


class DPOParams(AdapterParams):
    """Settings of direct preference optimization."""

    dataset: str = Field("preferences", description="training set of kind preferences (prompt, chosen, rejected)")
    learning_rate: float = Field(
        1e-5,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 1e-4, log=True),
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="strength of the pull to the reference: the implicit reward is beta times the log-ratio (nats)",
        json_schema_extra=tunable(0.01, 0.5, log=True),
    )
    loss_type: Literal[
        "sigmoid",
        "cdpo",
        "robust",
        "ipo",
        "hinge",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ] = Field(
        "sigmoid",
        description="sigmoid: DPO; cdpo: DPO on labels softened by label_smoothing (Mitchell 2023, 'A note on DPO with "
        "noisy preferences'); robust: DPO corrected for flipped labels (arXiv:2403.00409); ipo: squared loss on "
        "per-token log-ratios, beta is the paper's tau (arXiv:2310.12036); hinge: SLiC (arXiv:2305.10425); exo_pair: "
        "reverse KL to softened labels (arXiv:2402.00856); nca_pair: noise contrastive alignment (arXiv:2402.05369); "
        "bco_pair: each side classified by itself (arXiv:2404.04656); sppo_hard: self-play regression to wins and "
        "losses, beta is 1/eta (arXiv:2405.00675); aot, aot_unpaired: sorted over the batch, optimal transport "
        "(arXiv:2406.05882); apo_zero: chosen up and rejected down, apo_down: both down (arXiv:2408.06266); discopop: "
        "the loss found by search (arXiv:2406.08414); sigmoid_norm: DPO on per-token log-ratios (arXiv:2411.15124)",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="assumed probability that a label is flipped; needed by cdpo and exo_pair (whose paper has 0.001), "
        "used by robust, aot and aot_unpaired, refused with every other loss_type",
    )
    discopop_tau: float = Field(
        _PAPER_TAU,
        gt=0,
        description="temperature of the blend of the two losses of loss_type discopop (nats); refused with all others. "
        "Below 0.1, the paper's value included, this loss has a minimum just below a margin of 0, where pairs can stay",
        exclude_if=_is_paper_tau,
    )

    @model_validator(mode="after")
    def _settings_fit_the_loss(self) -> "DPOParams":
        # TRL ignores a setting that its loss does not have without a word.
        loss = self.loss_type
        if self.label_smoothing > 0 and loss not in _SMOOTHED:
            raise ValueError(
                f"label_smoothing is not used by loss_type {loss}; leave it out, or choose one of "
                + ", ".join(_SMOOTHED)
            )
        if self.label_smoothing == 0 and loss in ("cdpo", "exo_pair"):
            raise ValueError(
                f"loss_type {loss} needs label_smoothing above 0: the share of labels that may be wrong, such as "
                + ("0.1" if loss == "cdpo" else "0.001")
            )
        if self.discopop_tau != _PAPER_TAU and loss != "discopop":
            raise ValueError(f"discopop_tau is not used by loss_type {loss}; leave it out, or choose discopop")
        if loss in ("aot", "aot_unpaired") and self.batch_size < 2:
            raise ValueError(f"loss_type {loss} compares the pairs of a batch with one another: set batch_size above 1")
        return self


class DPO(PairsMethod[DPOParams]):
    """Preference learning without a reward model; the reference is the policy as it came in."""

    name = "dpo"
    summary = "direct preference optimization against the incoming policy as reference"
    paper = "Rafailov et al. 2023, arXiv:2305.18290"
    version = 2
    params = DPOParams

    @classmethod
    def prepares(cls, settings: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
        """The reference's log-probabilities."""
        params = cls.params.model_validate(settings)
        rows = {name: getattr(params, name) for name in ("dataset", "max_length", "batch_size")}
        return PREPARATION, {**rows, "rows": rows_wanted(params), "of": "pairs"}

    def trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: object,
        pairs: PairRows,
        params: DPOParams,
        context: Context,
        prepared: Prepared = None,
    ) -> "Trainer":
        """See `PairsMethod`."""
        return _make_trainer(model, tokenizer, pairs, params, context, prepared)


def _make_trainer(
    model: "PreTrainedModel",
    tokenizer: object,
    rows: PairRows,
    params: DPOParams,
    context: Context,
    prepared: Prepared = None,
) -> "Trainer":
    import datasets
    from trl import DPOConfig, DPOTrainer

    order = training_order(len(rows), rows_wanted(params), context.seed)
    # Before adapters are put in, some of which change the weights.
    said = prepared or reference_of_pairs(model, rows, order, params.batch_size, context)
    reference = {row["row"]: row for row in said}
    arguments = training_arguments(
        DPOConfig,
        params,
        params.learning_rate,
        context,
        model.device.type,
        beta=params.beta,
        label_smoothing=params.label_smoothing,
        discopop_tau=params.discopop_tau,
        **_loss(params),
        max_length=None,
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    trained: Trainer = as_given(DPOTrainer)(
        **with_adapters(model, params, context.seed),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{**rows[i], **reference[i]} for i in order]),
        processing_class=tokenizer,
    )
    use_completion_head(model)
    return trained


def _loss(params: DPOParams) -> dict[str, object]:
    """The trainer's names of a loss.

    It has no conservative DPO, (1 - e) L + e L' with L' the loss of the flipped pair; but its robust loss is
    ((1 - e) L - e L') / (1 - 2 e), so 2 (1 - e) L less 1 - 2 e times that is the same.
    """
    if params.loss_type != "cdpo":
        return {"loss_type": [params.loss_type]}
    flipped = params.label_smoothing
    return {"loss_type": ["sigmoid", "robust"], "loss_weights": [2 * (1 - flipped), -(1 - 2 * flipped)]}
