"""Forms in Label Studio's formats: tasks and labelling configuration for its import, and its JSON export of them.

Formats: https://labelstud.io/guide/task_format and https://labelstud.io/tags. Every scale is a `Choices` of seven.
Who annotates how many tasks is Label Studio's own setting (annotations per task).
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from harness._spaces import quoted
from harness.human._criteria import SCALE
from harness.human._forms import Form
from harness.human._returned import Returned, ReturnedItem, as_mapping

__all__ = ["configuration", "read_export", "tasks"]


def tasks(form: Form) -> list[dict[str, Any]]:
    """What Label Studio imports: a task for each item of a form."""
    return [
        {
            "data": {
                "form": form.digest,
                "item": item["item"],
                "prompt": item["prompt"],
                **{f"answer_{place}": text for place, text in enumerate(item["answers"], start=1)},
            }
        }
        for item in form.content["items"]
    ]


def configuration(form: Form) -> str:
    """The labelling configuration (XML) of a project with these tasks."""
    criteria, pairs = form.content["criteria"], form.content["pairs"]
    lines = ["<View>", "  <Style>.htx-text { white-space: pre-wrap; }</Style>", '  <Header value="Prompt"/>']
    lines.append('  <Text name="prompt" value="$prompt" valueType="text"/>')
    for place in range(1, len(form.content["items"][0]["answers"]) + 1):
        lines.append(f'  <Header value="Answer {_letter(place - 1)}"/>')
        lines.append(f'  <Text name="answer_{place}" value="$answer_{place}" valueType="text"/>')
        for criterion in criteria:
            words = f"{criterion['question']} 1: {criterion['low']}, 7: {criterion['high']}"
            name = f"score_{place}_{criterion['name']}"
            lines += _choices(name, f"answer_{place}", words)
    for number, (first, second) in enumerate(pairs, start=1):
        a, b = _letter(first), _letter(second)
        words = f"Which is better, {a} or {b}? 1: {a} is much better, 4: alike, 7: {b} is much better"
        lines += _choices(f"preference_{number}", "prompt", words)
    lines.append('  <Header value="Comment"/>')
    lines.append('  <TextArea name="comment" toName="prompt" maxSubmissions="1" rows="2"/>')
    return "\n".join([*lines, "</View>", ""])


def _letter(place: int) -> str:
    return "ABCD"[place]


def _choices(name: str, to: str, words: str) -> list[str]:
    marks = "".join(f'<Choice value="{mark}"/>' for mark in SCALE)
    return [
        f'  <Header value={quoteattr(words)} size="5"/>',
        f'  <Choices name="{name}" toName="{to}" choice="single-radio" showInline="true" required="true">'
        f"{marks}</Choices>",
    ]


def read_export(exported: Sequence[object]) -> list[Returned]:
    """What each annotator of an export (format JSON) says; an annotation that was skipped is left out.

    Raises:
        ValueError: it is no export of tasks that `harness human create` made.
    """
    found: dict[tuple[str, str], list[ReturnedItem]] = {}
    for task in exported:
        match task:
            case {"data": {"form": str(form), "item": str(item)}, "annotations": list(annotations)}:
                for annotation in annotations:
                    one = as_mapping(annotation)
                    if not one.get("was_cancelled"):
                        found.setdefault((form, _annotator(one)), []).append(_item(item, one))
            case _:
                raise ValueError(
                    "no export of rating tasks: each needs data.form, data.item and annotations (export as JSON, not "
                    f"JSON-MIN): {quoted(task)}"
                )
    if not found:
        raise ValueError("Label Studio's export holds no annotation")
    return [Returned(form, rater, tuple(items)) for (form, rater), items in found.items()]


def _annotator(annotation: Mapping[str, Any]) -> str:
    by = annotation.get("completed_by")
    # By number: an e-mail address has no place in the store.
    number = by.get("id") if isinstance(by, dict) else by
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError("an annotation does not say who made it (completed_by)")
    return f"label-studio-{number}"


def _item(item: str, annotation: Mapping[str, Any]) -> ReturnedItem:
    marks: dict[str, Any] = {}
    comment = ""
    results = annotation.get("result")
    for result in results if isinstance(results, list) else []:
        one = as_mapping(result)
        name, value = str(one.get("from_name")), as_mapping(one.get("value"))
        if name == "comment" and isinstance(texts := value.get("text"), list):
            comment = "\n".join(map(str, texts))
        elif isinstance(chosen := value.get("choices"), list) and len(chosen) == 1:
            marks[name] = int(chosen[0]) if str(chosen[0]).isdecimal() else chosen[0]
    by_answer: dict[int, dict[str, Any]] = {}
    for name, mark in marks.items():
        kind, _, rest = name.partition("_")
        place, _, criterion = rest.partition("_")
        if kind == "score" and place.isdecimal():
            by_answer.setdefault(int(place), {})[criterion] = mark
    preferences = [marks[name] for name in sorted(n for n in marks if n.startswith("preference_"))]
    seconds = annotation.get("lead_time")
    return ReturnedItem(item, [by_answer[p] for p in sorted(by_answer)], preferences, comment, seconds)
