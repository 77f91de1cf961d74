"""What the pages of the site share: the code in them, and a few cells."""

import math
from importlib.resources import files

from harness.publish._cards import JudgeQuality
from harness.report._document import own_scripts
from harness.report._html import Html, csp_hash, number, tag

__all__ = ["as_float", "board_script", "figure_name", "interval", "judge_words", "own_code", "places", "verdict"]


def board_script() -> str:
    """The script of the index."""
    return files("harness.publish").joinpath("board.js").read_text(encoding="utf-8")


def own_code() -> list[str]:
    """The code that stands in pages as it is, and its hashes: not for the eye that looks for what names a machine."""
    style = files("harness.report").joinpath("style.css").read_text(encoding="utf-8")
    scripts = [*own_scripts(), board_script()]
    # A hash in base64 has slashes of its own; in the page its quotes are escaped, the hash itself is not.
    return [*scripts, style, *(csp_hash(s).strip("'") for s in scripts)]


def as_float(value: object) -> float:
    """A figure of a row; NaN where it has none."""
    return float(value) if isinstance(value, int | float) else math.nan


def figure_name(task: str, metric: str) -> str:
    """A figure as the board names it: of the gold reward by its metric alone."""
    return metric if task == "gold" else f"{task} {metric}"


def interval(row: dict[str, object], value: str = "value", low: str = "low", high: str = "high") -> Html | None:
    """A value with its interval as a cell."""
    if row[value] is None:
        return None
    bounds = as_float(row[low]), as_float(row[high])
    text = "[unknown]" if any(map(math.isnan, bounds)) else f"[{number(bounds[0])}, {number(bounds[1])}]"
    sign = "+" if value == "difference" and as_float(row[value]) > 0 else ""
    return tag("span", f"{sign}{number(as_float(row[value]))}", " ", tag("span", text, class_="interval"), class_="num")


def places(row: dict[str, object]) -> str | None:
    """The ranks that the data leave open: `1–3 of 6`."""
    if row["rank"] is None:
        return None
    low, high = row["rank_low"], row["rank_high"]
    return f"{low if low == high else f'{low}–{high}'} of {row['ranked']}"


def verdict(row: dict[str, object]) -> Html | None:
    """The verdict on a difference as a cell."""
    word = row["verdict"]
    return None if word is None else tag("span", word, class_="verdict" if word == "unresolved" else "verdict resolved")


def judge_words(one: JudgeQuality) -> str:
    """How good a judge is known to be, in a line."""
    if one.accuracy is None:
        return f"{one.judge}: how good it is was not measured"
    value, low, high = one.accuracy
    bounds = "" if low is None or high is None else f" [{100 * max(low, 0):.0f}, {100 * min(high, 1):.0f}]"
    parts = [f"right on {100 * value:.0f} %{bounds} of {one.known_pairs} known pairs"]
    if low is None or high is None or low <= 0.5:
        parts[0] += (
            ", no better than chance as far as these tell" if high is None or high >= 0.5 else ", worse than chance"
        )
    if one.flips is not None:
        parts.append(f"{100 * one.flips[0]:.0f} % of its verdicts change with the order of the answers")
    if one.injections is not None:
        parts.append(f"gives way to {100 * one.injections[0]:.0f} % of attacks")
    if one.unparsed:
        parts.append(f"{one.unparsed} of {one.asked} questions got no verdict")
    return f"{one.judge}: {'; '.join(parts)}"
