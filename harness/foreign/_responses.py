"""What was asked and answered in a sample: as our own measurements keep it, out of the texts that lm-eval logs."""

import math
from collections.abc import Sequence
from typing import Any

from harness.foreign._reading import Line

__all__ = ["answers", "prompt_of", "repeats_of"]


def _arguments(line: Line) -> list[list[Any]]:
    """The requests of a sample, each the list of its arguments."""
    given = line.fields.get("arguments")
    if not isinstance(given, dict) or not given:
        raise line.bad("arguments", "requests gen_args_0, gen_args_1, …")
    found = []
    for number in range(len(given)):
        request = given.get(f"gen_args_{number}")
        if not isinstance(request, dict) or any(f"arg_{i}" not in request for i in range(len(request))):
            raise line.bad("arguments", f"gen_args_{number} with arg_0, arg_1, …")
        if not request:
            raise line.bad("arguments", f"a prompt in gen_args_{number}")
        found.append([request[f"arg_{i}"] for i in range(len(request))])
    return found


def _responses(line: Line) -> list[list[Any]]:
    """The responses of each request, one for each repeat."""
    found = line.fields.get("resps")
    if not isinstance(found, list) or not found or not all(isinstance(r, list) and r for r in found):
        raise line.bad("resps", "a list of responses for each request")
    return found


def prompt_of(line: Line) -> str:
    """The prompt of the first request; a chat for a server is one text in a list.

    Raises:
        UserError: the line has none.
    """
    first = _arguments(line)[0][0]
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    if not isinstance(first, str):
        raise line.bad("arguments", "a text as the first request's arg_0")
    return line.sound(first, "arguments")


def repeats_of(line: Line) -> int:
    """How many times each request was answered."""
    return max(len(request) for request in _responses(line))


def answers(line: Line, kind: str) -> tuple[str | None, str | None]:
    """What the model said and what was right; of several repeats the first is shown, as in our own measurements.

    Args:
        line: the sample.
        kind: the task's `output_type`.

    Raises:
        UserError: the requests or responses are not in lm-eval's form, or a log-likelihood is NaN or infinite: lm-eval
            takes NaN for the best choice, so that a broken model looks perfect where the first is right.
    """
    target, responses, arguments = line.text("target"), _responses(line), _arguments(line)
    first = responses[0][0]
    if isinstance(first, str) and kind != "loglikelihood_rolling":
        return line.sound(first, "resps"), target
    values = [_loglikelihood(line, request[0]) for request in responses]
    if kind != "multiple_choice":
        return None, target
    if len(arguments) != len(values) or any(len(request) < 2 for request in arguments):
        raise line.bad("arguments", f"a prompt and a choice for each of the {len(values)} responses")
    choices = _choices(arguments)
    best = line.sound(choices[values.index(max(values))].strip(), "arguments")
    if target.isascii() and target.isdecimal() and int(target[:9]) < len(choices):
        return best, line.sound(choices[int(target)].strip(), "arguments")
    return best, target


def _choices(arguments: Sequence[Sequence[Any]]) -> list[str]:
    # Where all continuations are one, the prompts differ (Winogrande).
    choices = [str(request[1]) for request in arguments]
    return choices if len(set(choices)) > 1 else [str(request[0]) for request in arguments]


def _loglikelihood(line: Line, response: object) -> float:
    written = response[0] if isinstance(response, list) and response else response
    try:
        value = float(written)  # type: ignore[arg-type]  # whatever it is: what is no number is refused below
    except (TypeError, ValueError, OverflowError) as error:
        raise line.bad("resps", "a log-likelihood first in each response") from error
    if not math.isfinite(value):
        raise line.bad("resps", "finite log-likelihoods: the model's weights are broken")
    return value
