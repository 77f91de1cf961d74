"""Divergences between a teacher's and a student's next-token distributions, without keeping logits of many positions.

Everything is float32 and in nats. Positions are computed in chunks that the backward pass computes again, so at most
one chunk's logits (positions × vocabulary, of both models) are in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Divergence", "Losses", "completion_losses", "divergence"]

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]

_CHUNK = 512

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Losses:
    """Sums over the positions of a batch, nats: `soft` at the temperature, not yet times its square; `hard` at 1."""

    soft: Tensor
    hard: Tensor


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, beta: float) -> Tensor:
    """Divergence of log-probabilities [positions, vocabulary] → [positions], nats.

    `forward_kl` is KL(teacher ‖ student), `reverse_kl` KL(student ‖ teacher). `jsd` is the generalised Jensen-Shannon
    divergence of Agarwal et al. (arXiv:2306.13649): with the mixture m = beta teacher + (1 - beta) student,
    beta KL(teacher ‖ m) + (1 - beta) KL(student ‖ m). Divided by beta, it tends to forward_kl as beta goes to 0;
    divided by 1 - beta, to reverse_kl as beta goes to 1.
    """
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    weight = torch.tensor(beta, device=student.device)
    mixture = torch.logaddexp(teacher + weight.log(), student + (1.0 - weight).log())
    return beta * _kl(teacher, mixture) + (1.0 - beta) * _kl(student, mixture)


def _kl(of: Tensor, to: Tensor) -> Tensor:
    return (of.exp() * (of - to)).sum(-1)


def completion_losses(
    student: Tensor,
    teacher: Tensor,
    heads: tuple[Head, Head],
    targets: Tensor,
    *,
    kind: Divergence,
    beta: float,
    temperature: float,
) -> Losses:
    """The losses of a batch's completion positions.

    Args:
        student: hidden states [positions, width], with gradient.
        teacher: hidden states [positions, the teacher's width].
        heads: student's and teacher's, from hidden states to logits [positions, vocabulary].
        targets: the tokens that follow [positions].
    """

    def part(mine: Tensor, theirs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = heads[0](mine).float()
        with torch.no_grad():
            taught = torch.log_softmax(heads[1](theirs).float() / temperature, dim=-1)
        learned = torch.log_softmax(logits / temperature, dim=-1)
        hard = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return divergence(learned, taught, kind, beta).sum(), hard

    if len(targets) <= _CHUNK:
        soft, hard = part(student, teacher, targets)
        return Losses(soft, hard)
    from torch.utils.checkpoint import checkpoint

    pieces = [
        checkpoint(part, mine, theirs, wanted, use_reentrant=False)
        for mine, theirs, wanted in zip(
            torch.split(student, _CHUNK), torch.split(teacher, _CHUNK), torch.split(targets, _CHUNK), strict=True
        )
    ]
    return Losses(torch.stack([s for s, _ in pieces]).sum(), torch.stack([h for _, h in pieces]).sum())
