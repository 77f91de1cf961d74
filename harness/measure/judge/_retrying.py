"""What a failed request to an endpoint means: ask again and when, give this question up, or end at once."""

import datetime
import email.utils
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness._measures import Endpoint
from harness._printable import printable
from harness._secrets import redacted
from harness.errors import UserError

if TYPE_CHECKING:
    import openai

__all__ = ["FILTERED", "LostError", "clean", "lost_or_wrong", "pause_s"]

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LONGEST_WAIT_S = 120.0
"""An endpoint that asks to wait for longer has no answer to this question today."""

FILTERED = "content_filter"
"""The error code of an endpoint whose filter stands before the judge, and refuses a text by a 400."""

_AGAIN = frozenset({408, 409, 425, 429})
_EXHAUSTED = ("insufficient_quota", "billing_hard_limit_reached")
_LONGEST_TOLD = 300
_SHORTEST_SECRET = 8


@dataclass
class LostError(Exception):
    """A request without an answer that may have one the next time. `wait_s` is how long the endpoint asks to wait."""

    reason: str
    wait_s: float | None = None


def clean(text: str, key: str) -> str:
    """Text from the endpoint without the key, which it may echo, and without other secrets."""
    return redacted(text.replace(key, "[key removed]") if len(key) >= _SHORTEST_SECRET else text)


def pause_s(seed: str, tries: int, wait_s: float | None) -> float:
    """Seconds until a request is made again: doubled with each try, between half of that and all, so that requests that
    failed together do not come back together; never less than the endpoint asked for.

    Args:
        seed: of the jitter, of the question's own.
        tries: made so far, from 1.
    """
    longest = min(FIRST_PAUSE_S * 2.0 ** (tries - 1), LONGEST_PAUSE_S)
    jittered = longest * (0.5 + random.Random(f"{seed} {tries}").random() / 2)
    return jittered if wait_s is None else wait_s + min(jittered, FIRST_PAUSE_S)


def lost_or_wrong(error: "openai.APIStatusError", endpoint: Endpoint, key: str) -> LostError | UserError:
    """What a response of 3xx, 4xx or 5xx means."""
    status, who = error.status_code, f"judge {endpoint.label}"
    told = " ".join(printable(clean(error.message, key)).split())[:_LONGEST_TOLD]
    if status == 429 and error.code in _EXHAUSTED:
        return UserError(f"{who}: the account behind {endpoint.key_env} has no credit left ({told})")
    if status in _AGAIN or status >= 500:
        return LostError(f"status {status}", _retry_after(error.response.headers.get("retry-after")))
    if status < 400:
        place = urlsplit(error.response.headers.get("location", ""))
        elsewhere = clean(printable(f"{place.scheme}://{place.netloc}{place.path}"), key)[:_LONGEST_TOLD]
        return UserError(
            f"{who}: the endpoint sends requests on to {elsewhere}, which is not followed, so that the key goes where "
            "the suite says; if that is right, give the address there as endpoint"
        )
    if status == 401:
        return UserError(f"{who}: the endpoint refuses the key in {endpoint.key_env} (401: {told}); set a valid one")
    if status == 403:
        return UserError(f"{who}: the key in {endpoint.key_env} may not use {endpoint.model} (403: {told})")
    if status == 404:
        return UserError(
            f"{who}: the endpoint knows no model {endpoint.model}, or its address is another (404: {told}); check "
            "model, and that endpoint ends with its version, as in …/v1"
        )
    hint = "; if it gives no logprobs, set probabilities: false" if endpoint.probabilities else ""
    return UserError(f"{who}: the endpoint refuses what it is asked of {endpoint.model} ({status}: {told}){hint}")


def _retry_after(header: str | None) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
    # Not a number is no wait; infinity is longer than any.
    return max(seconds, 0.0) if seconds == seconds else None  # noqa: PLR0124  # how NaN is told
