"""Which prompts are judged, and for what."""

import json
from typing import cast

from harness._measures import Judge
from harness.data import BUNDLED_FOLDER, DataSource, load_training_set
from harness.measure.judge._types import AspectName, JudgePrompt

__all__ = ["judge_prompts"]

_BUNDLED = BUNDLED_FOLDER / "local" / "judge_prompts"


def judge_prompts(source: DataSource, judge: Judge) -> list[JudgePrompt]:
    """The prompts within the limit (of each bundled set, or of the dataset named), without torch.

    The bundled sets are judged for what they are made for; every prompt of a dataset is judged for each aspect.

    Raises:
        UserError: a dataset that is not there or holds no prompts.
    """
    # Only these four are fields of Judge.
    aspects = cast("tuple[AspectName, ...]", judge.aspects())
    if isinstance(judge.prompts, str):
        rows, _ = load_training_set(judge.prompts, "prompts", source, split="test")
        chats = [tuple((t["role"], t["content"]) for t in row["prompt"]) for row in rows]
        distinct = list(dict.fromkeys(chats))[: judge.limit]
        return [JudgePrompt(chat, _text_of(chat), aspects) for chat in distinct]
    found = []
    for aspect in aspects:
        lines = (_BUNDLED / f"{aspect}.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[: judge.limit]:
            text = json.loads(line)["prompt"]
            found.append(JudgePrompt((("user", text),), text, (aspect,)))
    return found


def _text_of(chat: tuple[tuple[str, str], ...]) -> str:
    if len(chat) == 1:
        return chat[0][1]
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in chat)
