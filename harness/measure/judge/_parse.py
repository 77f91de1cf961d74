"""Which verdict a judge's words hold: one of those allowed, said as it was asked to, or none."""

import re

from harness.measure.judge._templates import TEMPLATES
from harness.measure.judge._types import TemplateName

__all__ = ["parse_verdict"]

_LAST_LINE = re.compile(
    r"(?:\*\*)?(?:(?:final )?(?:answer|rating|score|verdict):)?(?:\*\*)? *"
    r"(?:\*\*)?\[\[ *([a-z]+|[0-9]{1,2}) *\]\](?:\*\*)?\.?(?:\*\*)?",
    re.IGNORECASE | re.ASCII,
)


def parse_verdict(template: TemplateName, words: str) -> str | None:
    """The verdict in a judge's reply, or None. Nothing is guessed, rounded or looked for elsewhere.

    The last line that is not blank must be `[[verdict]]` and nothing else, the verdict one of the template's, in
    capitals or not. As judges write it in MT-Bench (Zheng et al. 2023, arXiv:2306.05685), the line may begin with
    `Rating:`, `Score:`, `Verdict:` or `Answer:` (also `Final …:`), may be bold (`**`) and may end with a full stop.
    Ratings are whole numbers from 1 to 10: `[[7.5]]`, `[[7/10]]`, `[[07]]` and `[[0]]` are none. What stands in earlier
    lines counts for nothing, so that a judge may quote a text that tells it how to vote.
    """
    lines = words.rstrip().splitlines()
    found = _LAST_LINE.fullmatch(lines[-1].strip()) if lines else None
    verdict = found[1].lower() if found else None
    return verdict if verdict in TEMPLATES[template].verdicts else None
