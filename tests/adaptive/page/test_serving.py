"""The served page by HTTP, without a browser: what visitors send, what they get, and how the server ends."""

from __future__ import annotations

import html
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from page_server import CLIP, SMALL, WINDOW, Server, Visitor, served_files, serving, small_checkpoint, write_song

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return served_files(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(files):
    with serving("--checkpoint", files / "small.safetensors", "--uploads", files / "up") as running:
        yield running


@pytest.fixture
def visitor(server):
    return Visitor(server.url)


def links(text: str) -> list[str]:
    return [html.unescape(link) for link in re.findall(r'(?:src|href)="([^"]+)"', text)]


def root(files: Path) -> Path:
    return next((files / "up").iterdir())


def lies_in(folder: Path, name: str) -> bool:
    """Whether a file of that name lies anywhere below, while folders there may go away."""
    return any(name in names for _, _, names in os.walk(folder))


def test_healthy(server):
    health = httpx.get(f"{server.url}/healthz")
    assert health.status_code == 200
    told = health.json()
    assert told["status"] == "ready"
    assert told["codec"] == "mel"
    assert told["weights"] == "small.safetensors"
    assert told["version"][0].isdigit()


def test_a_composition(visitor, files):
    a, b = visitor.give("Song A", files / "a.wav"), visitor.give("Song B", files / "b.wav")
    assert (a["seconds"], b["seconds"], a["clip"]) == (20.0, 15.0, CLIP)
    pattern, picture, table, *_ = visitor.compose({**a, "at": 3.35}, {**b, "at": 1.0}, "1")
    assert "pair 1" in pattern
    assert picture["value"]["type"] == "plotly"
    assert table.count("<tr>") == 4
    found = {Path(link).name: visitor.fetch(link) for link in links(pattern)}
    assert {name: answer.status_code for name, answer in found.items()} == dict.fromkeys(
        ("pattern.wav", "clip_a.wav", "clip_b.wav", "pattern.json"), 200
    )
    report = found["pattern.json"].json()
    assert report["input"] == "a.wav"
    assert report["clip_at"] == {"input": 3.35, "target": 1.0}
    (files / "got.wav").write_bytes(found["pattern.wav"].content)
    assert len(soundfile.read(files / "got.wav")[0]) == WINDOW * report["sample_rate"]


def test_a_match_with_itself(visitor, files):
    a = visitor.give("Song A", files / "a.wav")
    b = visitor.give("Song B", files / "a.wav")
    verdict, picture = visitor.match(a, {**b, "at": 5.0}, "All of the sound", 15)
    assert "Song B occurs in Song A: Song A from 5." in verdict or "from 4.9" in verdict
    assert picture["visible"]
    [heard] = [link for link in links(verdict) if link.endswith("heard.wav")]
    assert visitor.fetch(heard).status_code == 200


BAD = ["short", "silent", "text", "empty", "truncated", "infinite", "image"]


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp3"
    if kind == "text":
        path.write_text("no song\n" * 1000)
    elif kind == "empty":
        path.touch()
    elif kind == "image":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    elif kind == "short":
        soundfile.write(path := folder / "short.wav", np.full(3 * 16_000, 0.1), 16_000)
    elif kind == "silent":
        soundfile.write(path := folder / "silent.wav", np.zeros(10 * 16_000), 16_000)
    elif kind == "infinite":
        soundfile.write(path := folder / "inf.wav", np.full(10 * 16_000, np.inf, np.float32), 16_000, subtype="FLOAT")
    elif kind == "truncated":
        path = folder / "truncated.wav"
        whole = (folder / "a.wav").read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
    return path


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(server, visitor, files, kind):
    """A sentence at the song; what was there before is as it was, and the other song too."""
    path = bad_file(files, kind)
    printed = len(server.lines)
    b = visitor.give("Song B", files / "b.wav")
    strip = visitor.give("Song A", path)
    sentence = strip.pop("problem")
    assert not strip
    assert sentence.startswith(path.name)
    assert sentence.endswith(".")
    assert str(files) not in sentence
    assert "Traceback" not in "".join(server.lines[printed:])
    assert "Song A is missing" in visitor.compose({}, b)[0]
    a = visitor.give("Song A", files / "a.wav")
    assert "The pattern" in visitor.compose(a, b)[0], "nothing is lost"


@pytest.mark.parametrize(("rate", "channels"), [(192_000, 1), (48_000, 6), (8_000, 2)])
def test_unusual_files(visitor, files, rate, channels):
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (8 * rate, channels))
    soundfile.write(files / "unusual.wav", sound, rate)
    a, b = visitor.give("Song A", files / "unusual.wav"), visitor.give("Song B", files / "b.wav")
    assert a["seconds"] == pytest.approx(8.0, abs=0.01)
    assert "The pattern" in visitor.compose(a, b)[0]


def test_too_long(visitor, files):
    soundfile.write(files / "long.flac", np.full(21 * 60 * 8000, 0.1), 8000)
    assert "longer than 20 minutes" in visitor.give("Song A", files / "long.flac")["problem"]


def test_too_many_bytes(visitor, files):
    with (files / "big.wav").open("wb") as file:
        file.truncate(150 * 2**20)
    try:
        answer = visitor.upload(files / "big.wav")
        assert answer.status_code == 413
        assert "100 MB" in answer.text
    except httpx.WriteError:  # refused before all was sent
        pass
    assert visitor.http.get("/healthz").status_code == 200


NAMES = [
    "<img src=x onerror=alert(1)>.wav",
    "$\\frac{1}{x}$.wav",
    "`${1+1}`{{value}}.wav",
    "ä ö 音.wav",
    "x" * 200 + ".wav",
]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names(server, visitor, files, name):
    printed = len(server.lines)
    a, b = visitor.give("Song A", files / "a.wav", name), visitor.give("Song B", files / "b.wav", name)
    shown = visitor.compose(a, b)
    assert "The pattern" in shown[0]
    assert "does not occur" in visitor.match(a, b, "Loudness", 10)[0]
    assert "<img" not in json.dumps([a, b, *shown[:1], *shown[2:3]])
    assert "Traceback" not in "".join(server.lines[printed:])


@pytest.mark.parametrize("at", [-1, 1e9, None, "x", [], {"path": 3}])
def test_hostile_places(visitor, files, at):
    a, b = visitor.give("Song A", files / "a.wav"), visitor.give("Song B", files / "b.wav")
    answer = visitor.join("compose", "click", [None, {**a, "at": at}, None, b, "mean"])
    if answer.status_code == 200:
        assert "must begin between" in list(visitor.messages())[-1]["output"]["data"][0]
    else:
        assert answer.status_code == 403


@pytest.mark.parametrize("seconds", [-5, 1e9, 0])
def test_hostile_lengths_of_search(visitor, files, seconds):
    a, b = visitor.give("Song A", files / "a.wav"), visitor.give("Song B", files / "b.wav")
    assert visitor.join("match", "click", [None, a, None, b, "Loudness", seconds]).status_code == 200
    last = list(visitor.messages())[-1]
    assert "can be searched" in json.dumps(last) or not last["success"]
    assert "Traceback" not in json.dumps(last)


def test_other_arguments(server, visitor, files):
    a, b = visitor.give("Song A", files / "a.wav"), visitor.give("Song B", files / "b.wav")
    for data in ([], [None] * 3, [None, a, None, b, "../../etc"], [{"path": "/etc/passwd"}] * 5, "x"):
        answer = visitor.join("compose", "click", data)
        if answer.status_code == 200:
            last = list(visitor.messages())[-1]
            assert not last.get("success", False), data
            assert "/work" not in json.dumps(last)
            assert "Traceback" not in json.dumps(last)
    assert "The pattern" in visitor.compose(a, b)[0]


def test_no_other_file_is_read_or_served(visitor, files):
    secret = files / "secret.wav"
    write_song(secret, 10.0)
    inside = root(files)
    (inside / "link.wav").symlink_to(secret)
    for path in (secret, "/etc/passwd", f"{inside}/../../secret.wav", inside / "link.wav", inside / ".lock", inside):
        for form in (
            f"/gradio_api/file={path}",
            f"/gradio_api/file/{path}",
            f"/file={path}",
            f"/gradio_api/stream/{path}",
        ):
            assert visitor.http.get(form).status_code in (403, 404, 405), form
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        assert visitor.join("Song A", "change", [file]).status_code == 403
    for url in ("http://127.0.0.1:1/a.wav", "https://example.com/a.wav", "file:///etc/passwd"):
        assert visitor.http.get(f"/gradio_api/file={url}").status_code == 403
        assert visitor.http.get(f"/gradio_api/proxy={url}").status_code == 404
    (inside / "link.wav").unlink()


def test_uploads_outside_their_folder(visitor, files):
    for name in ("../../../escaped.wav", "/tmp/escaped.wav", "..\\escaped.wav"):
        [where] = visitor.upload(files / "a.wav", name).raise_for_status().json()
        assert Path(where).resolve().is_relative_to(root(files))
    assert not list(files.rglob("escaped.wav")) or all(
        path.is_relative_to(root(files)) for path in files.rglob("escaped.wav")
    )


def test_every_route_of_the_toolkit(visitor):
    """Those that the page does not need are closed, whichever they are in this version."""
    import gradio

    app = gradio.routes.App.create_app(gradio.Blocks(analytics_enabled=False))
    needed = re.compile(
        r"/$|/(config|theme.css|favicon.ico|assets|static|login|logout)"
        r"|/gradio_api/(theme|startup|login_check|token|user|app_id|upload|queue/(data|join)|heartbeat|cancel|reset|file=)"
    )
    closed = 0
    routers = [route.original_router for route in app.routes if hasattr(route, "original_router")]
    for route in (*app.routes, *(route for router in routers for route in router.routes)):
        path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", "/"))
        if needed.match(path):
            continue
        for method in getattr(route, "methods", None) or {"GET"}:
            if method != "HEAD":
                assert visitor.http.request(method, path).status_code in (404, 403), (method, path)
                closed += 1
    assert closed > 30


def test_what_a_session_leaves(visitor, files):
    a, b = visitor.give("Song A", files / "a.wav", "mine only.wav"), visitor.give("Song B", files / "b.wav")
    write_song(files / "unique.wav", 8.0, seed=77)
    visitor.give("Song A", files / "unique.wav")
    link = links(visitor.compose(visitor.give("Song A", files / "unique.wav"), b)[0])[0]
    assert visitor.fetch(link).status_code == 200
    assert lies_in(root(files), "unique.wav")
    assert a["seconds"] == 20.0
    with visitor.http.stream("GET", f"/gradio_api/heartbeat/{visitor.session}") as beat:
        next(beat.iter_lines())
    deadline = time.monotonic() + 60
    while lies_in(root(files), "unique.wav") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not lies_in(root(files), "unique.wav"), "the upload is gone with its session"
    assert visitor.fetch(link).status_code == 403


def test_twenty_visitors_at_once(server, files):
    """None fails; memory stays bounded. `make page-load` prints the table for the whole-sized agent."""

    def visit(number: int) -> float:
        one = Visitor(server.url)
        began = time.monotonic()
        a, b = one.give("Song A", files / "a.wav"), one.give("Song B", files / "b.wav")
        shown = one.compose({**a, "at": number / 2}, b, "mean")
        assert "The pattern" in shown[0]
        assert one.fetch(links(shown[0])[0]).status_code == 200
        return time.monotonic() - began

    before = server.memory()
    with ThreadPoolExecutor(20) as crowd:
        waits = list(crowd.map(visit, range(20)))
    print(
        f"20 visitors: {min(waits):.1f} s to {max(waits):.1f} s, memory {before >> 20} to {server.memory() >> 20} MiB"
    )
    assert server.memory() < before + 2**30
    with ThreadPoolExecutor(20) as crowd:
        list(crowd.map(visit, range(20)))
    assert server.memory() < before + 2**30


def test_the_end_waits_for_the_job(files):
    """SIGTERM in the middle of a job: its result comes, new ones are refused, uploads are gone, the exit code is 0."""
    big = small_checkpoint(files / "slow.safetensors", clip=12.0, window=8.0, **SMALL)
    with serving("--checkpoint", big, "--uploads", files / "end", "--jobs", 1) as server:
        one, two = Visitor(server.url), Visitor(server.url)
        write_song(files / "longer.wav", 60.0, seed=5)
        a, b = one.give("Song A", files / "longer.wav"), one.give("Song B", files / "longer.wav")
        a2 = two.give("Song A", files / "longer.wav")
        b2 = two.give("Song B", files / "longer.wav")
        assert one.join("match", "click", [None, a, None, {**b, "at": 20.0}, "All of the sound", 60]).status_code == 200
        told = one.messages()
        while (message := next(told))["msg"] != "progress":
            assert message["msg"] != "process_completed", "the job is too short for this test"
        server.terminate()
        server.wait_for("ending when")
        assert httpx.get(f"{server.url}/healthz").status_code == 503
        last = list(told)[-1]
        assert last["success"]
        assert "occurs in" in last["output"]["data"][0]
        refused = two.join("compose", "click", [None, a2, None, b2, "mean"]) if server.process.poll() is None else None
        if refused is not None and refused.status_code == 200:
            assert "about to restart" in list(two.messages())[-1]["output"]["data"][0]
        assert server.process.wait(60) == 0
        assert not list((files / "end").iterdir())
        assert "Traceback" not in "\n".join(server.lines)


def test_a_full_queue(files):
    with serving("--checkpoint", files / "small.safetensors", "--jobs", 1, "--waiting", 2) as server:
        visitors = [Visitor(server.url) for _ in range(6)]
        songs = [one.give("Song A", files / "a.wav") for one in visitors]
        for one in visitors:
            one.give("Song B", files / "a.wav")
        data = lambda song: [None, song, None, song, "All of the sound", 20]  # noqa: E731
        answers = [one.join("match", "click", data(song)) for one, song in zip(visitors, songs, strict=True)]
        codes = [answer.status_code for answer in answers]
        assert codes[0] == 200
        assert 503 in codes, codes
        assert "full" in next(answer.text for answer in answers if answer.status_code == 503)
        for one, code in zip(visitors, codes, strict=True):
            if code == 200:
                assert list(one.messages())[-1]["success"]


def test_a_password_keeps_everybody_out(files):
    password = files / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    with serving("--checkpoint", files / "small.safetensors", "--auth", f"anna:{password}") as server:
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        with httpx.Client(base_url=server.url) as stranger:
            assert "auth_required" in stranger.get("/").text
            assert stranger.get("/config").status_code == 401
            assert stranger.post("/gradio_api/upload", files={"files": ("a.wav", b"x")}).status_code == 401
            assert stranger.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
            assert stranger.get("/gradio_api/queue/data", params={"session_hash": "x"}).status_code == 401
            assert stranger.get("/gradio_api/file=/etc/passwd").status_code in (401, 403)
            assert stranger.get("/gradio_api/upload_progress", params={"upload_id": "x"}).status_code == 401
            wrong = stranger.post("/login", data={"username": "anna", "password": "wrong"})
            assert wrong.status_code in (400, 401)
            right = stranger.post("/login", data={"username": "anna", "password": "secret"})
            assert right.status_code == 200
            assert stranger.get("/config").status_code == 200


def test_a_checkpoint_that_is_none(files, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    server = Server("--checkpoint", tmp_path / "x.safetensors", "--uploads", tmp_path / "up")
    assert server.process.wait(120) == 2
    time.sleep(0.5)
    assert "x.safetensors" in server.lines[-1]
    assert "Traceback" not in "\n".join(server.lines)
    assert not list((tmp_path / "up").iterdir())
