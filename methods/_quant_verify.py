"""Writing a quantised model and making sure of it: loaded again, it is as small as it should be and as it was."""

import contextlib
import importlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness._resident import resident_bytes
from harness.errors import InfeasibleError, UserError
from harness.method import LoadedModel, Trained
from harness.models import load_model
from methods._quant_format import Grid, Matrix, save_quantised, tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Before", "Witness", "finish_quantised", "log_probs", "need_libraries", "quiet_logging"]

_PROBE = (2, 32)
"""Rows and tokens of the input on which both models are compared."""

_SAME = 1e-3
"""Largest difference of two right ways of computing in fp32: of a layer's output, relative; of a model's, in nats."""

_HEADER_BYTES = 200
"""At most so many for each tensor of a safetensors file."""


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """No warnings of the libraries: each says what the machine lacks, or what will change in a later version."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def need_libraries(*modules: str) -> None:
    """Import these packages of the `compression` extra, quietly.

    Raises:
        UserError: one is missing.
    """
    if missing := [m for m in modules if importlib.util.find_spec(m) is None]:
        raise UserError(
            f"quantisation needs {' and '.join(missing)}: install with pip install 'posttrain-harness[compression]'"
        )
    # Read when llmcompressor is first imported, which is when it has its first remarks to make.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "CRITICAL")
    with quiet_logging():
        for module in modules:
            importlib.import_module(module)


@dataclass(frozen=True)
class Before:
    """A model before it was quantised: its bytes, and its log-probabilities on the probe.

    Attributes:
        stored: of its files.
        state: of what a file of it in the types of memory would hold.
        resident: of its parameters and buffers.
    """

    stored: int
    state: int
    resident: int
    log_probs: "Tensor"

    @classmethod
    def of(cls, policy: LoadedModel) -> "Before":
        """Of a model that is still as it was loaded."""
        stored = sum(p.stat().st_size for p in policy.folder.rglob("*.safetensors"))
        state = {id(t): t.numel() * t.element_size() for t in policy.model.state_dict(keep_vars=True).values()}
        return cls(stored, sum(state.values()), resident_bytes(policy.model), log_probs(policy.model))


def _probe(model: "PreTrainedModel") -> "Tensor":
    import torch

    size = model.get_input_embeddings().weight.shape[0]
    return torch.randint(size, _PROBE, generator=torch.Generator().manual_seed(0)).to(model.device)


def log_probs(model: "PreTrainedModel") -> "Tensor":
    """Log-probabilities [rows, tokens, vocabulary] on a fixed input, in fp32."""
    import torch

    with torch.no_grad():
        found: Tensor = model(input_ids=_probe(model), use_cache=False).logits.float().log_softmax(-1)
    return found


@dataclass(frozen=True)
class Witness:
    """What a quantised model computes on the probe: log-probabilities, and each layer's input and output.

    Where inputs are rounded, the model as a whole is no witness: a sum that differs in its last bit moves an input
    across the border of two steps, and thirty layers make half a nat of it. One layer, given the same input, is.
    """

    log_probs: "Tensor"
    layers: "Mapping[str, tuple[Tensor, Tensor]]"

    @classmethod
    def of(cls, model: "PreTrainedModel", names: Iterable[str]) -> Self:
        """Of a model in memory and these layers of it.

        Raises:
            InfeasibleError: its output is not finite.
        """
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def watch(name: str) -> Any:  # noqa: ANN401  # a hook
            return lambda _module, args, output: seen.update({name: (args[0].detach(), output.detach())})

        hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
        try:
            found = log_probs(model)
        finally:
            for hook in hooks:
                hook.remove()
        if not bool(found.isfinite().all()):
            raise InfeasibleError("the quantised model's output is not finite")
        return cls(found, seen)

    def compare(self, model: "PreTrainedModel", grid: Grid) -> float:
        """Check another model that should compute the same; returns the mean absolute difference in nats.

        Raises:
            RuntimeError: a layer differs, or (weights alone rounded) the model does.
        """
        import torch

        for name, (given, wanted) in self.layers.items():
            with torch.no_grad():
                difference = model.get_submodule(name)(given) - wanted
            worst = float(difference.norm() / wanted.norm().clamp_min(1e-30))
            if not worst <= _SAME:
                raise RuntimeError(f"{name} differs from the layer that was quantised, by {worst:.2g} of its output")
        difference = float((log_probs(model) - self.log_probs).abs().mean())
        if grid.activations is None and not difference <= _SAME:
            raise RuntimeError(f"the model differs from the one that was quantised by {difference:.2g} nats on average")
        return difference


def finish_quantised(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    matrices: Mapping[str, Matrix],
    grid: Grid,
    scratch: Path,
    before: Before,
    metrics: Mapping[str, float],
) -> Trained:
    """Write the quantised model, load it as every measurement will, and check it against the one in memory.

    Args:
        model: computes with the quantised weights (and rounded inputs).

    Returns:
        The loaded model; its files go into the artifact as they were checked. Metrics: `weight_bytes_before` and
        `resident_bytes_before`; `weight_bytes`, `resident_bytes` and what the scheme says of them
        (`expected_…`); `bits_per_weight`, of the quantised matrices with their scales; `quantised_matrices`;
        `reload_difference` and `logprob_change`, mean absolute differences (nats) to the model in memory and to the
        policy as it was given.

    Raises:
        InfeasibleError: the quantised model's output is not finite.
        RuntimeError: it does not come back as it was, or not as small.
    """
    folder = scratch / "quantised"
    witness = Witness.of(model, matrices)
    save_quantised(model, tokenizer, matrices, grid, folder)
    loaded = load_model(folder)
    figures = _sizes(loaded.model, matrices, grid, folder, before)
    _same_rest(model, loaded.model, matrices)
    figures |= {
        "weight_bytes_before": before.stored,
        "resident_bytes_before": before.resident,
        "reload_difference": witness.compare(loaded.model, grid),
        "logprob_change": float((log_probs(loaded.model) - before.log_probs).abs().mean()),
    }
    return Trained(loaded.model, loaded.tokenizer, {**metrics, **figures}, _mover(folder))


def _same_rest(model: "PreTrainedModel", loaded: "PreTrainedModel", matrices: Mapping[str, Matrix]) -> None:
    """What is not quantised is as it was."""
    import torch

    again = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] not in matrices and not torch.equal(again[name], tensor):
            raise RuntimeError(f"{name}, which is not quantised, was not saved as it was")


def _sizes(
    model: "PreTrainedModel", matrices: Mapping[str, Matrix], grid: Grid, folder: Path, before: Before
) -> dict[str, float]:
    from harness._packed import PackedLinear

    packed = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    if packed != set(matrices):
        raise RuntimeError(
            f"{len(packed)} matrices are quantised after loading, expected {len(matrices)}; "
            f"wrong: {', '.join(sorted(packed ^ set(matrices))[:5])}"
        )
    resident = resident_bytes(model)
    stored = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    sizes = [tensor_bytes(m, grid) for m in matrices.values()]
    quantised_stored, quantised_resident = sum(s for s, _ in sizes), sum(r for _, r in sizes)
    weights = sum(m.values.numel() for m in matrices.values())
    # Everything else stays as it was: fp32, as policies are loaded.
    expected_stored = before.state - 4 * weights + quantised_stored
    expected_resident = before.resident - 4 * weights + quantised_resident
    # Names, types and shapes at the beginning of a file.
    header = _HEADER_BYTES * (1 + len(model.state_dict()))
    if stored > expected_stored + header or resident > expected_resident:
        raise RuntimeError(
            f"the quantised model takes {stored} bytes on disk and {resident} in memory, more than the scheme's "
            f"{expected_stored} (and up to {header} of headers) and {expected_resident}"
        )
    return {
        "weight_bytes": stored,
        "resident_bytes": resident,
        "expected_weight_bytes": expected_stored,
        "expected_resident_bytes": expected_resident,
        "bits_per_weight": 8 * quantised_stored / weights,
        "quantised_matrices": len(matrices),
    }


def _mover(folder: Path) -> Callable[[Path], None]:
    def write(artifact: Path) -> None:
        for path in folder.iterdir():
            shutil.move(path, artifact / path.name)

    return write
