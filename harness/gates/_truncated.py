"""Truncated prompts: requests longer than the model's window, whose beginning was cut off.

The scorer keeps the end of a request, as lm-eval does: what is lost are the instruction and the first examples. It
records how often that was; where a measurement of an earlier version did not, prompts are counted here anew, with a
tokenizer and a configuration from the artifacts.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from harness.gates._choices import is_ranked
from harness.gates._evidence import Asked, Evidence
from harness.gates._types import MATERIAL, Said

__all__ = ["truncated_prompts"]

_GATE = "truncated prompts"
_WINDOW = ("n_positions", "max_position_embeddings", "n_ctx")
_PROMPTS = """
    SELECT any_value(prompt) AS prompt FROM raw.samples
    WHERE half = 'final' AND list_contains($keys, measurement) GROUP BY measurement, document ORDER BY ALL
"""
_GENERATED = 256
"""Tokens that lm-eval generates at most where a task does not say."""
_BATCH = 1_000
_ADVICE = "Ask for fewer examples (num_fewshot) or a smaller max_gen_toks, or use a model with a longer window."


def truncated_prompts(evidence: Evidence) -> Iterator[Said]:
    """Flag tasks of which prompts were cut; invalid where more than `MATERIAL` of them were.

    A prompt depends on the base model and the task, so each pair is looked at once: post-training here leaves tokenizer
    and window as they were. What was not recorded is counted with the files of whichever recipe on that model still has
    some. That count is a lower bound: special tokens and all but one token of a choice are left out.
    """
    done: set[tuple[str, str]] = set()
    for one in evidence.asked:
        if one.kind == "task" and (one.model, one.task) not in done:
            done.add((one.model, one.task))
            if one.recorded:
                yield from _recorded(one.for_all())
            else:
                yield from _check(evidence, one, one.for_all())


def _recorded(one: Asked) -> Iterator[Said]:
    cut, n = (sum(getattr(r, what) for r in one.recorded.values()) for what in ("truncated", "requests"))
    if cut == 0:
        return
    most = max(r.most_cut for r in one.recorded.values())
    message = f"{cut} of {n} requests ({cut / n:.0%}) were cut at their beginning, by {most} tokens at most. {_ADVICE}"
    figures = {"cut": float(cut), "n": float(n), "most_cut": float(most)}
    yield one.flag(_GATE, "invalid" if cut > MATERIAL * n else "warning", message, figures)


def _check(evidence: Evidence, one: Asked, all_of: Asked) -> Iterator[Said]:
    import polars as pl

    mine = evidence.runs.filter((pl.col("model") == one.model) & (pl.col("recipe") == one.recipe))
    task = mine.filter((pl.col("kind") == "task") & pl.col("task").is_in(list(one.settings)))
    keys = task.filter((pl.col("seed") == task["seed"].min()) & (pl.col("target") == one.target))["measurement"]
    prompts = evidence.store.query(_PROMPTS, {"keys": keys.unique().to_list()})["prompt"]
    if prompts.null_count() or prompts.is_empty():
        yield all_of.unchecked(_GATE, "its prompts are not stored")
        return
    folder = _folder(evidence, one.model)
    if folder is None:
        where = (
            "no results folder was given" if evidence.results is None else "no artifact of the model is there any more"
        )
        yield all_of.unchecked(_GATE, f"{where}, so its window and tokenizer are not known")
        return
    window = _window(folder)
    new = 0 if is_ranked(one) else _new_tokens(evidence, one)
    if isinstance(new, str):
        yield all_of.unchecked(_GATE, new)
        return
    room = window - new
    lengths = _lengths(folder, prompts.to_list(), room)
    if isinstance(lengths, str):
        yield all_of.unchecked(_GATE, lengths)
        return
    cut = sum(length > room for length in lengths)
    if cut == 0:
        return
    n, longest = len(lengths), max(lengths)
    message = (
        f"At least {cut} of {n} prompts ({cut / n:.0%}) were cut at their beginning: the longest has {longest} tokens, "
        f"the window has room for {room}" + (f" beside {new} generated" if new else "") + f". {_ADVICE}"
    )
    figures = {"cut": float(cut), "n": float(n), "longest": float(longest), "room": float(room)}
    yield all_of.flag(_GATE, "invalid" if cut > MATERIAL * n else "warning", message, figures)


def _folder(evidence: Evidence, model: str) -> Path | None:
    """A folder with the configuration of this base model or of something trained from it."""
    import polars as pl

    if evidence.results is None:
        return None
    keys = evidence.runs.filter(pl.col("model") == model)["artifact"].unique(maintain_order=True)
    folders = [*(evidence.results / "artifacts" / str(key) for key in keys), Path(model).expanduser()]
    return next((f for f in folders if (f / "config.json").is_file()), None)


def _window(folder: Path) -> int:
    """The window as lm-eval finds it: from the configuration, the tokenizer's, or 2048."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    if (known := next((text[a] for a in _WINDOW if text.get(a) is not None), None)) is not None:
        return int(known)
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text(encoding="utf-8")).get("model_max_length") if file.is_file() else None
    return int(said) if said is not None and said < 1e29 else 2048


def _new_tokens(evidence: Evidence, one: Asked) -> int | str:
    """Tokens that the task's answers may have at most, or why that is not known."""
    given = next(iter(one.settings.values()), {}).get("max_gen_toks")
    if isinstance(given, int):
        return given
    documents = evidence.documents(one)
    if isinstance(documents, str):
        return f"the tokens kept free for answers are the task's own: {documents}"
    own = next(iter(documents.leaves.values())).task.config.generation_kwargs or {}
    return int(own.get("max_gen_toks", _GENERATED))


def _lengths(folder: Path, prompts: list[str], room: int) -> list[int] | str:
    """Tokens of each prompt; where all fit in any case, their bytes, since no token is shorter than a byte."""
    sizes = [len(p.encode()) for p in prompts]
    if max(sizes) < room:
        return sizes
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        return f"the tokenizer in {folder.name} cannot be loaded: {error}"
    found: list[int] = []
    for start in range(0, len(prompts), _BATCH):
        encoded = tokenizer(prompts[start : start + _BATCH], add_special_tokens=False)["input_ids"]
        found += [len(ids) for ids in encoded]
    return found
