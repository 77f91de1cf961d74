"""A server that speaks the Hub's API as far as publishing needs it: repositories, files, commits, LFS; in memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_" + "tEst" * 6
_LFS = 2_000
"""Bytes from which on a file goes by LFS here; on the Hub megabytes."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """A repository: its commits, each the files after it, and their messages."""

    sdk: str | None = None
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.bin filter=lfs\n"}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        """The head's name."""
        return f"{len(self.commits):040x}"

    def at(self, revision: str) -> dict[str, bytes]:
        """The files of a commit."""
        return self.commits[-1 if revision == "main" else int(revision, 16) - 1]


class Hub(http.server.ThreadingHTTPServer):
    """`repositories` by kind and name. `refuse` maps a method and part of a path to a status that it answers.

    At paths with `hang` in them it says nothing, and stores no file of more than `quota` bytes.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse: dict[tuple[str, str], int] = {}
        self.hang = ""
        self.quota = 10**9
        self.stop = threading.Event()
        self.before_commit: Callable[[Repository], None] = lambda _: None

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.stop.set()
        hub.shutdown()
        hub.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, value in given.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, code: int = 200, **headers: str) -> None:
        self._send(code, json.dumps(value).encode(), **headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def do_GET(self) -> None:
        """Every request."""
        body, hub = self._body(), self.server
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        if hub.hang and hub.hang in path:
            hub.stop.wait(20)
            self.close_connection = True
            return
        for (method, part), status in hub.refuse.items():
            if method == self.command and part in path:
                self._json({"error": f"no, says the hub: {status}"}, status)
                return
        # What is given to the storage carries no token: its address is a secret of its own.
        if not path.startswith("/stored/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "no"}, 401, X_Error_Message="Invalid credentials in Authorization header")
        elif path.startswith("/stored/"):
            hub.stored[path.rpartition("/")[2]] = body
            self._send(200, b"")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            fine = json.loads(body)["content"].startswith("---\n")
            self._json({} if fine else {"errors": [{"message": "no metadata"}]}, 200 if fine else 400)
        else:
            self._of_repository(path, body)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  # names of the library's

    def _create(self, asked: dict[str, Any]) -> None:
        kind, name = asked["type"], f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            self._json({"error": "You don't have the rights to create a repo under this namespace"}, 403)
        elif (kind, name) in self.server.repositories:
            self._json({"error": "You already created this repo"}, 409)
        else:
            made = self.server.repositories[kind, name] = Repository(asked.get("sdk"))
            if kind == "space":
                made.commits[0] |= SPACE
            self._json({"url": f"{self.server.endpoint}/{kind}s/{name}"})

    def _of_repository(self, path: str, body: bytes) -> None:
        found = re.fullmatch(r"(?:/api)?/(dataset|space)s/([^/]+/[^/]+?)(?:\.git)?(?:/(.*))?", path)
        repository = None if found is None else self.server.repositories.get((found[1], found[2]))
        if found is None or repository is None:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        what, _, rest = (found[3] or "").partition("/")
        if what in ("", "revision"):
            siblings = [{"rfilename": n} for n in repository.at("main")]
            facts = {"id": found[2], "sha": repository.sha, "siblings": siblings}
            self._json(facts | ({"sdk": repository.sdk} if repository.sdk else {}))
        elif what == "tree":
            files = repository.at(rest)
            self._json([{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()])
        elif what == "resolve":
            revision, _, name = rest.partition("/")
            self._file(repository.at(revision).get(name), revision)
        elif what == "preupload":
            self._modes(repository, json.loads(body)["files"])
        elif what == "info":
            self._batch(json.loads(body)["objects"])
        elif what == "commit":
            self._commit(repository, path, [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": path}, 404)

    def _file(self, content: bytes | None, revision: str) -> None:
        if content is None:
            self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            self._send(200, content, ETag=f'"{_oid(content)}"', X_Repo_Commit=revision)

    def _modes(self, repository: Repository, asked: list[dict[str, Any]]) -> None:
        there = repository.at("main")
        self._json(
            {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["size"] >= _LFS else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(there[f["path"]]) if f["path"] in there else None,
                    }
                    for f in asked
                ]
            }
        )

    def _batch(self, asked: list[dict[str, Any]]) -> None:
        full = {"code": 403, "message": "over your storage limit"}
        objects = [
            {**o, "error": full}
            if o["size"] > self.server.quota
            else {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/stored/{o['oid']}", "header": {}}}}
            for o in asked
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, path: str, lines: list[dict[str, Any]]) -> None:
        self.server.before_commit(repository)
        header = lines[0]["value"]
        if header.get("parentCommit", repository.sha) != repository.sha:
            self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        files = dict(repository.at("main"))
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                content = self.server.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                assert len(content) == value["size"]
                files[value["path"]] = content
            else:
                assert kind == "deletedFile"
                del files[value["path"]]
        repository.commits.append(files)
        repository.messages.append(header["summary"])
        page = path.removeprefix("/api").removesuffix("main") + repository.sha
        self._json({"commitUrl": f"{self.server.endpoint}{page}", "commitOid": repository.sha})


SPACE = {
    "README.md": b"---\ntitle: Board\nsdk: static\n---\n",
    "index.html": b"<h1>Welcome to your static Space!</h1>",
    "style.css": b"body {}",
}
"""With what the Hub begins a static Space."""
