"""Supervised fine-tuning: next-token loss on demonstrations, on the completion's tokens only."""

from pydantic import Field

from harness.method import Context, Inputs, Trained, tunable
from methods._adapters import AdapterMethod, AdapterParams, finished
from methods._rows import instruction_rows
from methods._sft_trainer import make_trainer
from methods._trl import need_dataset, train

__all__ = ["SFT", "SFTParams"]


class SFTParams(AdapterParams):
    """Settings of supervised fine-tuning."""

    dataset: str = Field("instructions", description="training set of kind instructions (prompt, completion)")
    learning_rate: float = Field(
        2e-5,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 2e-4, log=True),
    )


class SFT(AdapterMethod[SFTParams]):
    """Maximum likelihood of the demonstrated answers."""

    name = "sft"
    summary = "supervised fine-tuning: imitate the demonstrated answers"
    paper = "Ouyang et al. 2022, arXiv:2203.02155"
    version = 1
    params = SFTParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"

    def run(self, inputs: Inputs, params: SFTParams, context: Context) -> Trained:
        """Train the policy in place.

        Raises:
            UserError: no dataset, no usable row, no chat template.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
        """
        from methods._ppo_attention import quick_attention

        policy = inputs.load("policy")
        dataset = need_dataset(inputs, self.name)
        rows = instruction_rows(dataset, policy.tokenizer, params.max_length)
        trainer = make_trainer(policy.model, policy.tokenizer, rows, params, params.learning_rate, context)
        with quick_attention(policy.model):
            metrics = train(trainer, context, {})
        metrics["rows_left_out"] = float(len(dataset) - len(rows))
        return finished(trainer, policy.tokenizer, params, metrics, context)
