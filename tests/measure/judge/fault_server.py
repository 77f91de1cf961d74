"""An OpenAI-compatible server on loopback that does wrong what its script says, and counts what it was asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(words: str | None, finish: str = "stop", **choice: object) -> dict[str, Any]:
    """A reply that is sound, of 100 tokens read and 10 written."""
    message = {"role": "assistant", "content": words}
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def tokens(*positions: tuple[str, Mapping[str, float]]) -> dict[str, Any]:
    """logprobs: at each position the token that was said, and the log probability of each that is listed."""
    return {
        "logprobs": {
            "content": [
                {
                    "token": said,
                    "logprob": listed.get(said, -9.0),
                    "top_logprobs": [{"token": t, "logprob": p} for t, p in listed.items()],
                }
                for said, listed in positions
            ]
        }
    }


@dataclass
class Request:
    """One request as it came."""

    at: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The last turn."""
        return str(self.body["messages"][-1]["content"])


Answer = tuple[int, Mapping[str, str], bytes] | str | Mapping[str, Any]


@dataclass
class FaultServer:
    """`answer` is called with each request, and how often its text came before; what it returns is sent:

    words as a sound reply, a mapping as the JSON of a reply, or (status, headers, body). `hang` and `cut` are words of
    their own: nothing for a while, and half a body.
    """

    answer: Callable[[Request, int], Answer]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    busiest: int = 0

    def counts(self) -> list[int]:
        """How often each text came, in the order of their first coming."""
        texts = [r.text for r in self.requests]
        return [texts.count(text) for text in dict.fromkeys(texts)]


@contextmanager
def serving(answer: Callable[[Request, int], Answer]) -> Iterator[FaultServer]:
    """The server, for the length of the block."""
    state = FaultServer(answer)
    lock, over = threading.Lock(), threading.Event()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(time.monotonic(), self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            with lock:
                before = sum(r.text == request.text for r in state.requests)
                state.requests.append(request)
                busy += 1
                state.busiest = max(state.busiest, busy)
            answer = state.answer(request, before)
            with lock:
                # Before the reply is sent: who has it may ask again at once.
                busy -= 1
            self.reply(answer)

        def reply(self, answer: Answer) -> None:
            if answer == "hang":
                over.wait(20)
                return
            if answer == "cut":
                whole = json.dumps(completion("[[9]]")).encode()
                self.begin(200, {"Content-Length": str(len(whole))})
                self.wfile.write(whole[: len(whole) // 2])
                return
            if isinstance(answer, str):
                answer = completion(answer)
            if isinstance(answer, tuple):
                status, headers, body = answer
            else:
                status, headers, body = 200, {}, json.dumps(answer).encode()
            self.begin(status, {"Content-Length": str(len(body)), **headers})
            self.wfile.write(body)

        def begin(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Who asked has gone: that is what some of the tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        over.set()
        server.shutdown()
        server.server_close()
