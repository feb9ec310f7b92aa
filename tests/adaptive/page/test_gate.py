"""What gets through to the toolkit, and what does not: no server, only ASGI calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import quote, unquote

import pytest

from adaptive_window.page.gate import Gate
from adaptive_window.page.songs import MOST_BYTES
from adaptive_window.page.uploads import Uploads


@pytest.fixture
def uploads(tmp_path):
    made = Uploads(tmp_path / "up", age_seconds=1000)
    (made.root / "aa").mkdir()
    (made.root / "aa" / "a song.wav").touch()
    yield made
    made.close()


@pytest.fixture
def gate(uploads):
    made = Gate(uploads, lambda: (200, {"status": "ready"}))

    async def toolkit(scope, receive, send):
        body = b""
        if scope["method"] == "POST":
            body = (await receive())["body"]
        headers = [(b"access-control-allow-origin", b"https://evil.example")]
        await send({"type": "http.response.start", "status": 299, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    made.app = toolkit
    return made


def ask(gate, method, path, *, body=b"", **headers):
    """(status, headers, body) of one request; a header's `_` is `-`."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    if method == "POST":
        headers = {"content_length": str(len(body)), **headers}
    given = [(k.replace("_", "-").encode(), v.encode()) for k, v in {"host": "page", **headers}.items() if v]
    scope = {"type": "http", "method": method, "path": unquote(path), "headers": given}
    asyncio.run(gate(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, content


@pytest.mark.parametrize("broken", [False, True])
def test_a_page_that_goes_takes_its_uploads(gate, uploads, broken):
    """However the toolkit's open request ends."""
    song = uploads.root / "aa" / "a song.wav"
    uploads.use("mine", song)

    async def held_open(scope, receive, send):
        assert song.exists()
        if broken:
            raise asyncio.CancelledError
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate.app = held_open
    with pytest.raises(asyncio.CancelledError) if broken else contextlib.nullcontext():
        ask(gate, "GET", "/gradio_api/heartbeat/mine")
    assert not song.exists()


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index-Ab_1.js", "/theme.css", "/gradio_api/queue/data"])
def test_what_the_page_needs(gate, path):
    status, headers, _ = ask(gate, "GET", path)
    assert status == 299
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=https://example.com"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/stream/a/b/1/playlist.m3u8"),
        ("GET", "/gradio_api/custom_component/x/client/component/x.js"),
        ("GET", "/monitoring"),
        ("GET", "/assets/../../../../etc/passwd"),
        ("GET", "/assets/..%2f..%2fetc/passwd"),
        ("GET", "/svelte/x"),
        ("POST", "/gradio_api/run/compose"),
        ("POST", "/gradio_api/call/compose"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/process_recording"),
        ("PUT", "/gradio_api/upload"),
        ("DELETE", "/"),
        ("POST", "/"),
    ],
)
def test_what_it_does_not_need(gate, method, path):
    assert ask(gate, method, path)[0] == 404


def test_files(gate, uploads, tmp_path):
    secret = tmp_path / "secret.wav"
    secret.touch()
    (uploads.root / "aa" / "link.wav").symlink_to(secret)
    fetch = lambda path: ask(gate, "GET", f"/gradio_api/file={path}")[0]  # noqa: E731
    song = f"{uploads.root}/aa/a song.wav"
    assert fetch(quote(song)) == 299
    for path in (
        "/etc/passwd",
        "etc/passwd",
        "../../../etc/passwd",
        str(secret),
        f"{uploads.root}/../secret.wav",
        f"{uploads.root}/%2e%2e/%2e%2e/secret.wav",
        f"{uploads.root}/%252e%252e/%252e%252e/secret.wav",
        f"{uploads.root}/aa/link.wav",
        f"{uploads.root}/.lock",
        "http://127.0.0.1:80/",
        "https://example.com/a.wav",
        "file:///etc/passwd",
        "%00",
        "",
    ):
        assert fetch(path) == 403, path


@pytest.mark.parametrize("begun", [None, 500, 200])
@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_goes_while_it_is_asked_for(gate, uploads, begun, gone):
    """Whatever the toolkit has begun to say: it says 500 before it raises, 200 before it opens the file."""
    song = uploads.root / "aa" / "a song.wav"

    async def toolkit(scope, receive, send):
        if gone:
            song.unlink()
        if begun:
            await send({"type": "http.response.start", "status": begun, "headers": []})
        if begun == 500:
            await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise RuntimeError("File at path does not exist.")

    gate.app = toolkit
    with contextlib.nullcontext() if gone else pytest.raises(RuntimeError):
        status, _, content = ask(gate, "GET", f"/gradio_api/file={quote(str(song))}")
        assert (status, json.loads(content)) == (403, {"detail": "No such file."})


def test_an_error_while_a_file_is_sent_is_one(gate, uploads):
    song = uploads.root / "aa" / "a song.wav"
    seen = []

    async def toolkit(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"RI", "more_body": True})
        song.unlink()
        raise OSError("the disk")

    async def receive():
        raise AssertionError

    async def send(message):
        seen.append(message)

    gate.app = toolkit
    scope = {"type": "http", "method": "GET", "path": f"/gradio_api/file={song}", "headers": []}
    with pytest.raises(OSError, match="the disk"):
        asyncio.run(gate(scope, receive, send))
    assert [message.get("status") for message in seen] == [200, None]


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ({"data": [None, {"at": 1.0}], "fn_index": 1}, 299),
        ({"data": [{"path": "UP/aa/a song.wav", "url": "http://page/gradio_api/file=x"}]}, 299),
        ({"data": [{"path": "/etc/passwd"}]}, 403),
        ({"data": [{"path": "UP/../secret.wav"}]}, 403),
        ({"data": [{"path": "http://169.254.169.254/latest"}]}, 403),
        ({"data": [{"deep": [[{"path": "/etc/passwd"}]]}]}, 403),
        ({"data": [{"path": ["/etc/passwd"]}]}, 403),
        ({"data": [{"path": {"path": "/etc/passwd"}}]}, 403),
        ("nothing", 299),
    ],
)
def test_arguments(gate, uploads, call, status):
    body = json.dumps(call).replace("UP/", f"{uploads.root}/").encode()
    found, _, passed = ask(gate, "POST", "/gradio_api/queue/join", body=body)
    assert found == status
    if status == 299:
        assert passed == body, "the toolkit gets what was sent"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_arguments_that_are_none(gate, body):
    assert ask(gate, "POST", "/gradio_api/queue/join", body=body)[0] == 400


def test_sizes(gate, monkeypatch):
    upload = "/gradio_api/upload"
    assert ask(gate, "POST", upload, content_length=str(MOST_BYTES))[0] == 299
    assert ask(gate, "POST", upload, content_length=str(2 * MOST_BYTES))[0] == 413
    assert ask(gate, "POST", "/login", content_length=str(MOST_BYTES))[0] == 413
    assert ask(gate, "POST", upload, content_length="")[0] == 411
    assert ask(gate, "POST", upload, content_length="-1")[0] == 411
    monkeypatch.setattr(gate.uploads, "full", lambda: True)
    status, _, body = ask(gate, "POST", upload, content_length="1000")
    assert status == 507
    assert b"disk is full" in body


def test_other_sites(gate):
    assert ask(gate, "POST", "/gradio_api/upload", origin="https://page")[0] == 299
    assert ask(gate, "POST", "/gradio_api/upload", origin="https://evil.example")[0] == 403
    assert ask(gate, "POST", "/gradio_api/upload", origin="null")[0] == 403
    assert ask(gate, "POST", "/gradio_api/upload", origin="https://a.b", x_forwarded_host="a.b")[0] == 299


def test_before_a_job_could_run(gate):
    gate.app, gate.health = None, lambda: (503, {"status": "starting"})
    assert ask(gate, "GET", "/healthz")[0] == 503
    status, headers, body = ask(gate, "GET", "/")
    assert status == 503
    assert headers["retry-after"] == "5"
    assert b"starting" in body
