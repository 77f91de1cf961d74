"""Forms written: a page or a JSON file for each rater, Label Studio's files for all, and the key that stays here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness._spaces import suggestion
from harness.errors import UserError
from harness.human._answers import Source, read_prompts
from harness.human._forms import Design, Form, make_study
from harness.human._keys import keep_key
from harness.human._label_studio import configuration, tasks

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["FORMATS", "Created", "create_forms"]

FORMATS = ("page", "json", "label-studio")


@dataclass(frozen=True)
class Created:
    """What was made: the files to give away, the key to keep, and how much each rater has to do."""

    files: tuple[Path, ...]
    key: Path
    prompts: int
    shared: int
    items: tuple[int, ...]


def create_forms(
    store: "Store",
    sweep: str,
    design: Design,
    out: Path | None = None,
    *,
    formats: Sequence[str] = ("page",),
    recipes: Sequence[str] = (),
    source: Source | None = None,
    model: str | None = None,
) -> Created:
    """Make a study of a sweep's final answers; the same arguments make the same files.

    Args:
        store: ingested already.
        out: the folder of the forms; None: `forms/<sweep>-<study>`.
        formats: of `FORMATS`.
        recipes: whose answers; none: all of them.
        source: see `read_prompts`.
        model: see `read_prompts`.

    Raises:
        UserError: nothing to be rated, options that make no study, an unknown format, or `out` cannot be written.
        StorageError: the key cannot be kept.
    """
    # Here: a page is written with the report's markup, and the report shows what people say.
    from harness.human._page import form_page

    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format: {name!r} is unknown{suggestion(name, FORMATS)}")
    study = make_study(sweep, read_prompts(store, sweep, recipes, source=source, model=model), design)
    folder = out or Path("forms") / f"{sweep}-{study.name}"
    texts: dict[str, str] = {}
    for form in study.forms:
        if form.number and "page" in formats:
            texts[f"rater-{form.number}.html"] = form_page(form)
        if form.number and "json" in formats:
            texts[f"rater-{form.number}.json"] = _as_json({**form.content, "digest": form.digest})
    if "label-studio" in formats:
        texts |= _label_studio(study.forms[0])
    # The key first: a form that nobody can read back must not be given away.
    key = keep_key(store.results, sweep, study)
    files = tuple(_write(folder / name, text) for name, text in texts.items())
    counts = tuple(len(form.key) for form in study.forms if form.number)
    return Created(files, key, study.prompts, study.shared, counts)


def _label_studio(form: Form) -> dict[str, str]:
    return {"label-studio-tasks.json": _as_json(tasks(form)), "label-studio-config.xml": configuration(form)}


def _as_json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half a character, which a byte-level tokenizer can leave in an answer, has no UTF-8.
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write the forms to {path.parent}: {error}; give another folder with -o") from error
    return path
