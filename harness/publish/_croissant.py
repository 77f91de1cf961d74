"""Croissant 1.0: what the data downloads hold, for whatever loads datasets by their metadata.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html. It lies at the site's root and names the files below it.
The specification also wants a licence, an address, creators and a date. Who publishes a board has told none of them but
the date: the licence is the one of works without one, and creator and address say no more than what is known.
"""

import json
from collections.abc import Mapping
from typing import Any

from harness.publish._aggregates import STATISTICS
from harness.publish._board import ROWS, Board
from harness.publish._cards import SAMPLES
from harness.publish._names import recorded

__all__ = ["CROISSANT", "croissant"]

CROISSANT = "croissant.json"
_TYPES = {"String": "sc:Text", "Float64": "sc:Float", "Int64": "sc:Integer"}
_FILES = {
    "data/entries.parquet": ("application/x-parquet", "Every figure, a row per entry, task and metric"),
    "data/entries.csv": ("text/csv", "The same figures as CSV"),
    "data/entries.json": ("application/json", "The same figures as JSON"),
    "data/samples.parquet": ("application/x-parquet", "The scores of single documents that the figures are made of"),
    "data/provenance.json": ("application/json", "Suites, settings, budgets, machines and stages of the entries"),
}
_COLUMNS = {
    "entry": "Key of the entry on this board",
    "id": "Digest of the sweep, recipe, model and target",
    "digest": "Digest of the id and every score",
    "sweep": "The sweep that the entry is of",
    "suite": "The suite that the sweep ran",
    "recipe": "The recipe's name; base is the untouched base model",
    "method": "The steps of the recipe",
    "model": "The base model",
    "target": "The device, precision and backend that it was measured on",
    "task": "The task; gold, judge, people and profile are measures of the harness",
    "metric": "The metric",
    "statistic": "What the value is of the scores: mean, or median of a profile's repeats",
    "better": "higher, lower or none",
    "value": "The figure",
    "stderr": "Its standard error",
    "low": "Lower end of its 95 % interval",
    "high": "Upper end of its 95 % interval",
    "n": "Documents (of what people say: prompts), or repeats of a profile",
    "seeds": "Seeds that were trained",
    "raters": "Raters, of what people say",
    "rank": "Its place among the entries with the task and metric",
    "rank_low": "The best place that the data leave open",
    "rank_high": "The worst place that the data leave open",
    "ranked": "How many entries were ranked",
    "base": "Key of the base model's entry",
    "difference": "The value minus the base model's, paired by document",
    "difference_low": "Lower end of the difference's 95 % interval",
    "difference_high": "Upper end of the difference's 95 % interval",
    "difference_n": "Documents that both have",
    "p": "p value of the difference",
    "adjusted_p": "The same, Holm-corrected over the figures of the entry",
    "verdict": "better, worse or unresolved",
    "trials": "Tuning trials",
    "device_seconds": "Seconds of workers for tuning and final runs together",
    "settings": "The chosen settings as JSON",
    "state": "State of the sweep",
    "recorded_at": "When the sweep was recorded, UTC",
    "seed": "Seed of the final run",
    "document": "The leaf task and the document's id in it, document and rater's number, or a profile's repeat",
    "score": "The score of the document",
    "response": "What the model said, or the choice that it preferred; null where texts are not published",
    "prompt": "The prompt; null where texts are not published",
    "expected": "What was right; null where texts are not published",
}

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(board: Board, files: Mapping[str, tuple[str, int]]) -> bytes:
    """The metadata as JSON-LD.

    Args:
        board: what is published.
        files: sha256 and size of the data downloads, by their paths in the export.
    """
    suites = sorted({card.suite for card in board.cards.values()})
    date = max(recorded(card) for card in board.cards.values()).date().isoformat()
    found = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "posttrain-harness-leaderboard",
        "description": (
            f"{len(board.cards)} models after training or compression, of {', '.join(suites)}: figures with intervals, "
            f"and the scores of every document that they are made of. Figures: {STATISTICS['mean']}."
        ),
        "license": "https://choosealicense.com/no-permission/",
        "url": "index.html",
        "creator": {"@type": "sc:Organization", "name": "not stated"},
        "datePublished": date,
        "citeAs": f"Leaderboard of post-training recipes ({', '.join(suites)}), made by posttrain-harness, {date}",
        "version": "1.0.0",
        "isLiveDataset": False,
        "distribution": [_file(name, *files[name]) for name in _FILES],
        "recordSet": [
            _records("figures", "data/entries.parquet", ROWS, ("entry", "task", "metric")),
            _records(
                "samples",
                "data/samples.parquet",
                {"entry": "String", **SAMPLES},
                ("entry", "task", "metric", "seed", "document"),
            ),
        ],
    }
    return (json.dumps(found, indent=1) + "\n").encode()


def _file(name: str, sha256: str, size: int) -> dict[str, Any]:
    kind, what = _FILES[name]
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name.rpartition("/")[2],
        "description": what,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _records(name: str, file: str, columns: Mapping[str, str], key: tuple[str, ...]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": _FILES[file][1],
        "key": [{"@id": f"{name}/{column}"} for column in key],
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "name": column,
                "description": _COLUMNS[column],
                "dataType": _TYPES[kind],
                "source": {"fileObject": {"@id": file}, "extract": {"column": column}},
            }
            for column, kind in columns.items()
        ],
    }
