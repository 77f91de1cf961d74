"""What is kept of how others made their results: enough to judge a comparison, nothing of who they are and where."""

import datetime
import re
from collections.abc import Mapping
from typing import Any

from harness._printable import printable
from harness._secrets import redacted
from harness.foreign._reading import finite_number
from harness.keys import content_key

__all__ = ["environment_facts", "model_identity", "model_label", "run_settings", "scrubbed", "seed_of", "task_settings"]

_PRIVATE = re.compile(
    r"(^|_)(token|secret|passw(or)?d|api_?key|auth\w*|credentials?|user(name)?|host(name)?|url|endpoint|port)$", re.I
)
_PATH = re.compile(
    r"(?<![^\s,;=:'\"(\[])(?:file:/+|~[\w.-]*[\\/]|\.{1,2}[\\/]|[A-Za-z]:[\\/]+|\\\\|/+)(?:[^\\/,;'\"\n]*[\\/]+)*"
    r"(?P<last>[^\\/,;'\"\n]*)(?P<end>[\\/]*)"
)
_ADDRESS = re.compile(
    r"\b(?!file:)[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s,;'\"]*|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|[^\s@]+@[^\s@]+\.[^\s@]+"
)
_LONGEST = 2000
_VALUES = 200


def scrubbed(value: object, name: str = "", depth: int = 0) -> object:
    """A JSON value without what points to a person or a machine.

    Paths keep their last part (a hub id, `org/name`, stays), addresses, secrets and fields named like them are replaced
    by a word, numbers that JSON lacks become texts, and what is very long or deep is cut.
    """
    if _PRIVATE.search(name) and value not in (None, "", False, True):
        return "[removed]"
    if isinstance(value, str):
        return _scrubbed_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)[:40]
    if isinstance(value, float):
        return value if finite_number(value) is not None else str(value)
    if depth > 8:
        return "[cut]"
    if isinstance(value, Mapping):
        pairs = list(value.items())[:_VALUES]
        return {str(_scrubbed_text(str(k))): scrubbed(v, str(k), depth + 1) for k, v in pairs}
    if isinstance(value, list):
        return [scrubbed(v, name, depth + 1) for v in value[:_VALUES]]
    return "[cut]"


def _scrubbed_text(text: str) -> str:
    text = text[:_LONGEST].encode("utf-8", "replace").decode()
    text = _ADDRESS.sub("[address removed]", redacted(text))
    text = _PATH.sub(lambda found: _last_part(found.group()), text)
    # A path from the folder where they stood; two parts may be a hub id.
    return _last_part(text) if re.fullmatch(r"[\w.-]+(?:[\\/][\w.-]+){2,}[\\/]?|[\w.-]+(?:\\[\w.-]+)+", text) else text


def _last_part(path: str) -> str:
    parts = [p for p in re.split(r"[\\/]+", path) if p not in ("", ".", "..")]
    return parts[-1] if parts else path


def _arguments(config: Mapping[str, Any]) -> object:
    """The arguments of the model by name: older versions of lm-eval wrote them as one text."""
    given = config.get("model_args")
    if isinstance(given, str) and "=" in given:
        return {name: value for name, _, value in (one.partition("=") for one in given.split(",") if one)}
    return given


def model_label(results: Mapping[str, Any]) -> str:
    """The model's name: a hub id, or the last part of its path."""
    name = results.get("model_name")
    label = printable(_scrubbed_text(name)).strip()[:200] if isinstance(name, str) else ""
    return label or "unknown"


def model_identity(results: Mapping[str, Any]) -> str:
    """A key of the model and how it was loaded, as far as lm-eval says it: what an artifact's key is for our own."""
    config = results.get("config")
    known = config if isinstance(config, Mapping) else {}
    names = ("model", "model_sha", "model_revision", "model_dtype", "model_num_parameters", "peft_sha", "delta_sha")
    facts = {name: scrubbed(known.get(name)) for name in names}
    return content_key("lm-eval model", name=model_label(results), args=scrubbed(_arguments(known)), **facts)


def seed_of(results: Mapping[str, Any]) -> int:
    """The run's `random_seed`; 0 where it has none."""
    config = results.get("config")
    seed = config.get("random_seed") if isinstance(config, Mapping) else None
    return seed if isinstance(seed, int) and not isinstance(seed, bool) and abs(seed) < 2**63 else 0


def run_settings(results: Mapping[str, Any]) -> dict[str, object]:
    """What a run says of itself, for every measurement made in it."""
    config = results.get("config")
    known = config if isinstance(config, Mapping) else {}
    kept = ("model", "model_dtype", "model_revision", "model_sha", "model_num_parameters", "batch_size", "limit")
    seeds = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
    top = ("lm_eval_version", "transformers_version", "git_hash", "fewshot_as_multiturn", "chat_template_sha")
    found = {
        **{name: scrubbed(known.get(name)) for name in (*kept, *seeds, "gen_kwargs")},
        **{name: scrubbed(results.get(name)) for name in (*top, "system_instruction_sha")},
        "model_args": scrubbed(_arguments(known)),
        "chat_template": results.get("chat_template_sha") is not None,
        "date": _date(results.get("date")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _date(value: object) -> str | None:
    seconds = finite_number(value)
    try:
        return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def task_settings(results: Mapping[str, Any], task: str) -> dict[str, object]:
    """What a run says of how one task was asked."""

    def of(name: str) -> Any:  # noqa: ANN401  # any JSON value
        part = results.get(name)
        return part.get(task) if isinstance(part, Mapping) else None

    config = of("configs")
    known = config if isinstance(config, Mapping) else {}
    kept = ("dataset_path", "dataset_name", "output_type", "generation_kwargs", "repeats")
    counts = of("n-samples")
    found = {
        **{name: scrubbed(known.get(name)) for name in kept},
        "num_fewshot": scrubbed(of("n-shot") if of("n-shot") is not None else known.get("num_fewshot")),
        "version": scrubbed(of("versions")),
        "documents_of_task": scrubbed(counts.get("original") if isinstance(counts, Mapping) else None),
    }
    return {name: value for name, value in found.items() if value is not None}


def environment_facts(results: Mapping[str, Any]) -> dict[str, object]:
    """What a run says of its libraries and its processors, in the form of our own environments."""
    text = results.get("pretty_env_info")
    lines = text[:100_000].splitlines() if isinstance(text, str) else []
    told = {key.strip(): value.strip() for key, sep, value in (line.partition(":") for line in lines) if sep}
    gpus = sorted({v for k, v in told.items() if re.fullmatch(r"GPU \d+", k)})
    config = results.get("config")
    args = _arguments(config) if isinstance(config, Mapping) else None
    trusted = args.get("trust_remote_code") if isinstance(args, Mapping) else None
    packages = {
        "torch": told.get("PyTorch version"),
        "transformers": results.get("transformers_version"),
        "lm-eval": results.get("lm_eval_version"),
    }
    return {
        "imported": "from results of lm-eval; as they tell it",
        "machine": {"cpu": scrubbed(told.get("Model name")), "gpu": scrubbed(", ".join(gpus)) or None},
        "python": scrubbed(told.get("Python version", "unknown").split(" ")[0][:20]),
        "packages": {name: scrubbed(version) for name, version in packages.items()},
        "remote code allowed": trusted is True or str(trusted).lower() in ("true", "1"),
    }
