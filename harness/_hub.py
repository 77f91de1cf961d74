"""What an error of the hub's libraries means to the user: the reason in a line, and what to do."""

import errno
import functools
import json
from collections.abc import Iterator

from harness._printable import printable
from harness._secrets import redacted

__all__ = ["bound_waiting", "hub_reason", "repository_problem"]

_ELSEWHERE = "try again later, or use what is on this machine: a folder, or a bundled name"
_LONGEST = 300
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@functools.cache
def bound_waiting(answer_s: float = 0.0) -> None:
    """Let no request of the hub's libraries in this process wait for ever: some of theirs do, for a server that hangs.

    A request without a timeout of its own gets `HF_HUB_DOWNLOAD_TIMEOUT` seconds (10 by default) for each read, and
    if it sends something at least `answer_s` seconds.
    """
    import httpx
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils._http import default_client_factory

    def hook(request: httpx.Request) -> None:
        given = request.extensions.get("timeout", {})
        wait = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        longer = max(wait, answer_s) if request.method in ("POST", "PUT") else wait
        waits = {"connect": wait, "read": longer, "write": longer, "pool": wait}
        request.extensions["timeout"] = {n: w if given.get(n) is None else given[n] for n, w in waits.items()}

    def client() -> httpx.Client:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], hook]}
        return made

    huggingface_hub.set_client_factory(client)


def repository_problem(dataset: str) -> str | None:
    """Why the hub does not give a dataset's repository, as of `hub_reason`, or None; None also where it is off.

    The `datasets` library asks a hub that hangs again and again for minutes, and hides what the hub did behind its own
    search for files.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None

    bound_waiting()
    try:
        HfApi().dataset_info(dataset)
    except Exception as error:
        reason = hub_reason(error)
        if reason is None:
            raise
        return reason
    return None


def hub_reason(error: BaseException) -> str | None:
    """Why the hub did not give what was asked for, and what to do; None where the error is no failure of the hub.

    The libraries wrap what happened in errors that speak of their caches; the reason is found in what those stem from.
    """
    chain = list(_chain(error))
    names = {name for one in chain for name in (c.__name__ for c in type(one).__mro__)}
    status = next((code for one in chain if (code := _status(one)) is not None), None)
    if "OfflineModeIsEnabled" in names or "OfflineModeIsEnabled" in str(error):
        return "the hub is switched off here (HF_HUB_OFFLINE=1) and it is not in the cache; unset that, or use a folder"
    if "GatedRepoError" in names or status == 403:
        return "access to it is restricted; accept its terms on its page, and set HF_TOKEN to a token that may read it"
    if status == 401 or "LocalTokenNotFoundError" in names:
        return "the hub knows no such repository, or only for those with a token; check the name, or set HF_TOKEN"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError", "RevisionNotFoundError"} or status == 404:
        return "the hub has no such repository (or it is private: then set HF_TOKEN); check the name"
    if status is not None and status >= 400:
        return f"the hub answered with an error ({status}); {_ELSEWHERE}"
    if names & {"TimeoutException", "Timeout", "TimeoutError"}:
        return f"the hub did not answer in time (HF_HUB_DOWNLOAD_TIMEOUT, seconds, says how long to wait); {_ELSEWHERE}"
    if names & {"ConnectError", "ConnectionError", "NetworkError", "ProxyError"}:
        return f"the hub cannot be reached ({_line(chain[-1])}); {_ELSEWHERE}"
    if any(isinstance(one, OSError) and one.errno in _NO_ROOM for one in chain):
        return f"it cannot be written to the cache ({_line(chain[-1])}); make room, or set HF_HOME to another folder"
    if any(isinstance(one, json.JSONDecodeError | UnicodeDecodeError) for one in chain) or "DecodingError" in names:
        return f"what answered is no hub: it did not send JSON (a login page of the network, a proxy?); {_ELSEWHERE}"
    if names & {"HTTPError", "RemoteProtocolError", "TransportError", "FileMetadataError"}:
        return f"the download broke off ({_line(chain[-1])}); run it again to go on, or use a folder"
    if names & {"HfHubHTTPError", "LocalEntryNotFoundError", "IncompleteSnapshotError", "HFValidationError", "OSError"}:
        return f"{_line(error)}; {_ELSEWHERE}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return printable(redacted(text.splitlines()[0]))[:_LONGEST].rstrip(".")
