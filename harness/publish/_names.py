"""Names for the files and models of the formats that others read: made of an entry's own, and safe as paths."""

import datetime
import re

from harness.publish._cards import Card

__all__ = ["COMPONENT", "developer_of", "is_hub_id", "model_id", "model_name", "packages", "recorded", "slug"]

COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}"
"""A part of a path in an export, as a pattern."""

OWN = "posttrain-harness"
"""Stands for the developer of models that no organisation is known of."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_RESERVED = re.compile(r"(?i)(?:data|con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")


def slug(text: str) -> str:
    """The text as a part of a path on any system."""
    found = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:60].rstrip("-.") or "unnamed"
    return f"{found}_" if _RESERVED.fullmatch(found) else found


def is_hub_id(name: str) -> bool:
    """Whether it is written as `org/name`."""
    return _HUB_ID.fullmatch(name) is not None


def developer_of(card: Card) -> str:
    """Whose model it is: of an untouched one on the hub its organisation's, else nobody's that is known."""
    return slug(card.model.partition("/")[0]) if not card.steps and is_hub_id(card.model) else OWN


def model_name(card: Card) -> str:
    """The model's name: the base model's own, or that with the recipe and the sweep, which tell it from others."""
    base = slug(card.model.rpartition("/")[2])
    return slug(f"{base[:28]}-{slug(card.recipe)[:20]}-{card.sweep[-8:]}") if card.steps else base


def model_id(card: Card) -> str:
    """`developer/model`."""
    return f"{developer_of(card)}/{model_name(card)}"


def recorded(card: Card) -> datetime.datetime:
    """When the sweep was recorded, UTC; the beginning of 1970 where an export of others says no time."""
    try:
        found = datetime.datetime.fromisoformat(card.recorded_at)
    except ValueError:
        return datetime.datetime.fromtimestamp(0, datetime.UTC)
    return found.replace(tzinfo=datetime.UTC) if found.tzinfo is None else found.astimezone(datetime.UTC)


def packages(card: Card) -> dict[str, str]:
    """The versions of the libraries that the sweep recorded, of its first environment that says one."""
    found: dict[str, str] = {}
    for _, facts in card.environment:
        listed = facts.get("packages")
        for name, version in listed.items() if isinstance(listed, dict) else ():
            if isinstance(version, str) and version != "absent":
                found.setdefault(name, version)
    return found
