"""Teacher and student: whether they fit together, a student made of a model's own layers, and hidden states of both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import LoadedModel

__all__ = ["Trunk", "check_pair", "check_sampling", "keep_layers", "kept_layers"]


def check_pair(student: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a teacher whose distributions are over other tokens than the student's.

    Raises:
        UserError: the vocabularies differ.
    """
    sizes = [m.model.get_output_embeddings().weight.shape[0] for m in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"distill: the student in {student.folder} has {sizes[0]} tokens, the teacher in {teacher.folder} "
            f"{sizes[1]}; their distributions compare only over one vocabulary: take a teacher of the same family"
        )
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise UserError(
            f"distill: the student in {student.folder} and the teacher in {teacher.folder} number their tokens "
            "differently; take a teacher with the student's tokenizer"
        )


def kept_layers(layers: int, wanted: int) -> list[int]:
    """`wanted` of `layers` layers, evenly spaced, the first and the last among them.

    Raises:
        UserError: there are not more layers than that.
    """
    if wanted >= layers:
        raise UserError(f"distill: student_layers is {wanted}, the model has {layers} layers; keep fewer")
    return [round(i * (layers - 1) / (wanted - 1)) for i in range(wanted)]


def keep_layers(model: Any, wanted: int) -> list[int]:  # noqa: ANN401  # transformers is untyped
    """Drop layers of a causal model in place, as DistilBERT began (Sanh et al., arXiv:1910.01108).

    Returns:
        The indices of the layers that stay.

    Raises:
        UserError: it has no more layers than wanted, or no list of them is found.
    """
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    kept = kept_layers(count, wanted)
    lists = [
        (module, name)
        for module in model.base_model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(lists) != 1:
        raise UserError(f"distill: {type(model).__name__} has {len(lists)} lists of {count} layers; expected one")
    ((owner, name),) = lists
    layers = nn.ModuleList([getattr(owner, name)[i] for i in kept])
    setattr(owner, name, layers)
    for place, layer in enumerate(layers):
        for module in layer.modules():
            # Where a layer's keys and values lie in the cache.
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = place
    config.num_hidden_layers = wanted
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, list | tuple) and len(value) == count:
            setattr(config, key, [value[i] for i in kept])
    return kept


def check_sampling(model: Any) -> None:  # noqa: ANN401  # transformers is untyped
    """Refuse what the sampler would get wrong.

    Raises:
        UserError: other attention than full, or logits that are more than a linear layer.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UserError(f"distill samples with a full-attention cache; this model's layers are {sorted(kinds)}")
    if not Trunk.of(model).sliced:
        raise UserError(
            f"distill samples from a linear output layer; {type(model).__name__} changes its logits further: "
            "set on_policy: 0"
        )


@dataclass(frozen=True)
class Trunk:
    """A causal model seen as hidden states and output layer; where logits are more than that, as logits alone."""

    model: Any
    sliced: bool
    head: Callable[[Tensor], Tensor]

    @staticmethod
    @torch.no_grad()
    def of(model: Any) -> "Trunk":  # noqa: ANN401  # transformers is untyped
        """Find out by a short input whether the logits are the output layer of the last hidden state."""
        ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
        training = model.training
        model.eval()
        head = model.get_output_embeddings()
        apart = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        sliced = torch.allclose(apart, model(input_ids=ids, use_cache=False).logits, atol=1e-4, rtol=1e-4)
        model.train(training)
        return Trunk(model, sliced, head if sliced else _same)

    def at(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What `head` makes logits of, at the places of `mask` [rows, length - 1]: where the next token counts."""
        if not self.sliced:
            found: Tensor = self.model(input_ids=ids, use_cache=False).logits[:, :-1][mask]
            return found
        hidden: Tensor = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][mask]
        return hidden


def _same(logits: Tensor) -> Tensor:
    return logits
