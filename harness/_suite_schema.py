"""The JSON Schema of a suite; a step of its recipes is one of the methods with its settings."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness._pipelines import PIPELINES
from harness._recipes import MOST_ROUNDS, NAME_PATTERN
from harness._spaces import default_range
from harness._suite import Suite
from harness.errors import UserError
from harness.method import Method, Params, find_method, method_names

__all__ = ["schema_text", "suite_json_schema"]

_DEFINITIONS: dict[str, dict[str, Any]] = {
    "SearchedValues": {
        "type": "object",
        "additionalProperties": False,
        "required": ["values"],
        "properties": {
            "values": {
                "type": "array",
                "minItems": 1,
                "uniqueItems": True,
                "items": {"type": ["string", "number", "boolean", "null"]},
            }
        },
        "description": "searched: one of these values",
    },
    "SearchedRange": {
        "type": "object",
        "additionalProperties": False,
        "required": ["min", "max"],
        "properties": {
            "min": {"type": "number", "description": "the smallest value"},
            "max": {"type": "number", "description": "the largest value"},
            "log": {"type": "boolean", "default": False, "description": "search on a logarithmic scale; min > 0"},
            "step": {"type": "number", "exclusiveMinimum": 0, "description": "only min, min + step, …; not with log"},
        },
        "description": "searched: a range, both ends included",
    },
}


def _recipes_schema(methods: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of the key `recipes` and the definitions it refers to (for `$defs`).

    A method that cannot be imported here is left out.
    """
    use = {
        "type": "object",
        "additionalProperties": False,
        "required": ["use"],
        "properties": {
            "use": {"type": "string", "description": "begin with the result of this recipe; only as the first step"}
        },
    }
    own = {
        "type": "object",
        "description": "a method of your own: package.module:Class with its settings",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "patternProperties": {"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$": {"type": "object"}},
    }
    steps: list[dict[str, Any]] = []
    definitions = dict(_DEFINITIONS)
    for name in methods if methods is not None else method_names():
        try:
            definitions[f"step_{name}"] = _step(name, find_method(name))
        except (UserError, ImportError):
            continue
        steps.append({"$ref": f"#/$defs/step_{name}"})
    steps += [own, _pipeline()]
    recipes = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": NAME_PATTERN, "not": {"const": "base"}},
        "additionalProperties": {"type": "array", "minItems": 1, "items": {"oneOf": [use, *steps, _repeat(steps)]}},
    }
    return recipes, definitions


def _repeat(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "a group of steps, run several times: each round goes on from the one before",
        "additionalProperties": False,
        "required": ["repeat", "steps"],
        "properties": {
            "repeat": {"type": "integer", "minimum": 1, "maximum": MOST_ROUNDS, "description": "how many times"},
            "steps": {"type": "array", "minItems": 1, "items": {"oneOf": list(steps)}},
        },
    }


def _pipeline() -> dict[str, Any]:
    whole = [
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {"const": name, "description": pipeline.paper},
                **{
                    step: {"type": "object", "description": "replaces settings of the paper"} for step in pipeline.names
                },
            },
        }
        for name, pipeline in PIPELINES.items()
    ]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["pipeline"],
        "properties": {
            "pipeline": {
                "description": "the steps of a published pipeline, with its paper's settings",
                "anyOf": [{"enum": list(PIPELINES)}, *whole],
            }
        },
    }


def _step(name: str, method: type[Method[Params]]) -> dict[str, Any]:
    schema = method.params.model_json_schema()
    definitions = schema.get("$defs", {})
    settings = {
        key: _setting(
            _inlined(value, definitions), searchable=default_range(method.params.model_fields[key]) is not None
        )
        for key, value in schema["properties"].items()
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name],
        "properties": {
            name: {
                "type": "object",
                "description": f"{method.summary} ({method.paper})",
                "additionalProperties": False,
                "properties": settings,
                "required": schema.get("required", []),
            }
        },
    }


def _setting(schema: Mapping[str, Any], *, searchable: bool) -> dict[str, Any]:
    outer = {key: schema[key] for key in ("description", "default") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in {*outer, "title", "search"}}
    shapes: list[dict[str, Any]] = [inner, {"$ref": "#/$defs/SearchedValues"}]
    if {"integer", "number"} & {option.get("type") for option in (inner, *inner.get("anyOf", ()))}:
        shapes.append({"$ref": "#/$defs/SearchedRange"})
    if searchable:
        found = schema["search"]
        scale = ", logarithmic" if found["log"] else ""
        shapes.append({"const": "search", "description": f"searched: {found['min']} to {found['max']}{scale}"})
    return {**outer, "anyOf": shapes}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a schema is any JSON
    # A method's definitions would have to be renamed to stand beside another's.
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if reference := schema.get("$ref"):
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_inlined(definitions[str(reference).rsplit("/", 1)[-1]], definitions), **rest}
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def suite_json_schema(methods: Sequence[str] | None = None) -> dict[str, object]:
    """The JSON Schema of a suite, with which editors complete and check its YAML.

    Args:
        methods: whose settings it describes; None: all that are found.
    """
    schema = Suite.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A suite of the post-training harness"
    recipes, definitions = _recipes_schema(methods)
    schema["$defs"] = {**schema.get("$defs", {}), **definitions}
    schema["properties"]["recipes"] = {
        **recipes,
        "description": schema["properties"]["recipes"]["description"],
        "title": "Recipes",
    }
    return schema


def schema_text(methods: Sequence[str] | None = None) -> str:
    """The JSON Schema as the text of a file: what `harness/suite.schema.json` holds for the methods shipped."""
    return json.dumps(suite_json_schema(methods), indent=2, ensure_ascii=False) + "\n"
