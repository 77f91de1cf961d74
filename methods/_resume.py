"""Going on with a Trainer of transformers from a checkpoint, and making one between two of its steps.

The Trainer's own checkpoints do not do: they hold pickles and whole adapters by their configuration. Its loop is kept:
it skips the rows that were trained on; what it loads comes from here.
"""

from typing import TYPE_CHECKING, Any

from methods._checkpoint import Checkpoint, Checkpoints, random_state, set_random_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import Trainer, TrainerCallback

__all__ = ["checkpointing", "trained_state"]


def trained_state(model: Any) -> "dict[str, Tensor]":  # noqa: ANN401  # a model of transformers' or of peft's
    """What training changes of a model, by name: weights with a gradient, and buffers that are saved."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    saved = model.state_dict().keys()
    return weights | {name: buffer for name, buffer in model.named_buffers() if name in saved}


def checkpointing(trainer: "Trainer", checkpoints: Checkpoints, scratch: "Path") -> str | None:
    """Have the trainer keep checkpoints, and go on from the one there is.

    Returns:
        What `trainer.train` takes as `resume_from_checkpoint`.
    """
    found = checkpoints.resume()
    trainer.add_callback(_callback(trainer, checkpoints, found))
    if found is None:
        return None
    from transformers.trainer_callback import TrainerState

    folder = scratch / "resumed"
    folder.mkdir()
    trained = TrainerState(global_step=found.step, train_batch_size=trainer.args.train_batch_size)
    trained.compute_steps(trainer.args, trainer.args.max_steps)
    trained.save_to_json(str(folder / "trainer_state.json"))

    def load_optimizer(*_: object) -> None:
        # Once both are there, and the references and masks that are made of the weights as they came.
        found.restore(trained_state(trainer.model))
        state = found.state()
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.lr_scheduler.load_state_dict(state["scheduler"])
        trainer._total_train_tokens = state["tokens"]

    def nothing(*_: object, **__: object) -> None:
        return None

    # Methods of the Trainer that this version calls, each in its place; the random numbers are set by the callback.
    trainer._load_from_checkpoint = nothing
    trainer._load_optimizer_and_scheduler = load_optimizer
    trainer._load_rng_state = nothing
    return str(folder)


def _callback(trainer: "Trainer", checkpoints: Checkpoints, found: Checkpoint | None) -> "TrainerCallback":
    from transformers import TrainerCallback

    class Keep(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        resumed = found

        def on_step_begin(self, _args: object, state: Any, _control: object, **_: object) -> None:  # noqa: ANN401  # the Trainer's state is untyped
            # The step before is logged, and this one's rows are fetched: the same moment in every run.
            if self.resumed is not None:
                set_random_state(self.resumed.state()["random"])
                self.resumed = None
            elif checkpoints.due() and state.global_step > 0:
                checkpoints.save(
                    state.global_step,
                    trained_state(trainer.model),
                    {
                        "optimizer": trainer.optimizer.state_dict(),
                        "scheduler": trainer.lr_scheduler.state_dict(),
                        "tokens": trainer._total_train_tokens,
                        "random": random_state(),
                    },
                )

    return Keep()
