"""What stands before the toolkit: the few routes that the page needs, and nothing else.

The toolkit has many more (a proxy, streams, monitoring, calls by name); they answer 404 here. A file is served, and
taken as an argument, only if it lies in the uploads' folder. Nothing may be loaded from another host, and no other site
may call. When a visitor's page has gone, what it uploaded goes: the toolkit's own event for that can be lost where the
page goes before the toolkit has begun to wait.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..storage import strict_json
from .songs import MOST_BYTES
from .uploads import Uploads

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = "/healthz"
_ID = r"[\w-]{1,64}"
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/assets/[\w./-]+|/static/[\w./-]+|/logout"
    rf"|/gradio_api/(theme\.css|startup-events|login_check/?|token/?|user/?|app_id/?|upload_progress|queue/data|heartbeat/{_ID})"
)
_WRITE = re.compile(r"/login/?|/gradio_api/(upload|queue/join|cancel|reset/?)")
_BEAT = re.compile(rf"/gradio_api/heartbeat/({_ID})")
_FILE = "/gradio_api/file="
_UPLOAD, _JOIN = "/gradio_api/upload", "/gradio_api/queue/join"

MOST_REQUEST = 2**20  # bytes of any request but an upload
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """An ASGI application around the page's.

    `app` is None until a job could run; `health` gives the status and the body that `/healthz` answers.
    """

    def __init__(self, uploads: Uploads, health: Callable[[], tuple[int, dict[str, Any]]]) -> None:
        self.uploads, self.health = uploads, health
        self.app: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        method, path = scope["method"], scope["path"]
        if path == HEALTH and method in ("GET", "HEAD"):
            await answer(send, *self.health())
            return
        if self.app is None:
            await answer(send, 503, {"detail": "The page is starting; try again in a few seconds."}, retry=5)
            return
        refusal = self._refusal(method, path, scope)
        if refusal is not None:
            await answer(send, refusal[0], {"detail": refusal[1]})
            return
        if path == _JOIN:
            body = await _read(receive)
            refusal = self._refused_call(body)
            if refusal is not None:
                await answer(send, refusal[0], {"detail": refusal[1]})
                return
            receive = _again(body, receive)
        try:
            if path.startswith(_FILE):
                await _file(self.app, Path(path[len(_FILE) :]), scope, receive, send)
            else:
                await self.app(scope, receive, _with_headers(send))
        finally:
            if beat := _BEAT.fullmatch(path):  # a page holds this request open for as long as it is shown
                await asyncio.to_thread(self.uploads.end, beat[1])

    def _refusal(self, method: str, path: str, scope: Scope) -> tuple[int, str] | None:
        """(status, sentence) of a request that goes no further."""
        if method in ("GET", "HEAD"):
            if path.startswith(_FILE):
                inside = self.uploads.holds(unquote(path[len(_FILE) :])) and self.uploads.holds(path[len(_FILE) :])
                return None if inside else (403, "No such file.")
            return None if _READ.fullmatch(path) and ".." not in path else (404, "Not found.")
        if method != "POST" or not _WRITE.fullmatch(path):
            return 404, "Not found."
        if not _same_site(scope):
            return 403, "The request comes from another site."
        length = _header(scope, b"content-length")
        if length is None or not length.isdecimal():
            return 411, "The request must say how long it is."
        if path == _UPLOAD:
            if int(length) > MOST_BYTES + MOST_REQUEST:
                return 413, f"A file may have at most {MOST_BYTES >> 20} MB."
            if self.uploads.full():
                return 507, "This machine's disk is full; try again later."
        elif int(length) > MOST_REQUEST:
            return 413, "The request is too long."
        return None

    def _refused_call(self, body: bytes) -> tuple[int, str] | None:
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "The request is not JSON."
        if all(self.uploads.holds(path) for path in _paths(call)):
            return None
        return 403, "No such file."


async def _file(app: App, path: Path, scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to a request for a file, which may go, with its session, between two looks that the toolkit takes.

    That is no error of the server's: the answer is held back until there is something to read in it.
    """
    answered, held = False, list[Message]()

    async def late(message: Message) -> None:
        nonlocal answered
        if message["type"] == "http.response.start":
            held.append(message)
        elif answered or held[0]["status"] < 500 or path.exists():
            if not answered:
                answered = True
                await _with_headers(send)(held[0])
            await send(message)

    try:
        await app(scope, receive, late)
    except Exception:
        if answered or path.exists():
            raise
    if not answered:
        await answer(send, 403, {"detail": "No such file."})


def _paths(call: Any) -> list[str]:
    """Every file named anywhere in a call's arguments; what is no text at a file's place is refused as one."""
    found, todo = [], [call]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                found.append(value["path"] if isinstance(value["path"], str) else "\0")
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return found


def _same_site(scope: Scope) -> bool:
    """Whether a browser sends it from the page itself; what is no browser names no origin."""
    origin = _header(scope, b"origin")
    hosts = _header(scope, b"host"), _header(scope, b"x-forwarded-host")
    return origin is None or urlsplit(origin).netloc in hosts


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def _read(receive: Receive) -> bytes:
    """The body; the server refuses to pass on more of it than its length says, which has been checked."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            own = [pair for pair in message.get("headers", ()) if not pair[0].lower().startswith(b"access-control-")]
            message = {**message, "headers": [*own, *extra]}
        await send(message)

    return wrapped


async def answer(send: Send, status: int, body: dict[str, Any], *, retry: int | None = None) -> None:
    content = strict_json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if retry is not None:
        headers.append((b"retry-after", str(retry).encode()))
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
