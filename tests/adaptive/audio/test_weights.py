"""Finding, fetching and reading weight files: what goes wrong is said, nothing hangs, nothing in a file is run."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adaptive_window.audio import weights
from adaptive_window.audio.codec import CodecUnavailable
from adaptive_window.audio.weights import Source, download_folder, locate, read_state

BODY = bytes(range(256)) * 10_000


def source(url: str = "http://127.0.0.1:9/weights.th", sha256: str = "") -> Source:
    return Source(file_names=("first.th", "second.th"), hub=(), url=url, saved_as="weights.th", sha256=sha256)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


Serve = Callable[[Callable[[http.server.BaseHTTPRequestHandler], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers with the function given; returns its URL."""
    servers = []

    def start(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/weights.th"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, body: bytes, claim: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if claim is None else claim))
    handler.end_headers()
    handler.wfile.write(body)


def test_a_file_and_a_folder_are_taken_as_named(tmp_path: Path) -> None:
    (tmp_path / "second.th").touch()
    assert locate("c", source(), tmp_path / "second.th", fetch=False, timeout=1) == tmp_path / "second.th"
    assert locate("c", source(), str(tmp_path), fetch=False, timeout=1) == tmp_path / "second.th"
    (tmp_path / "first.th").touch()
    assert locate("c", source(), tmp_path, fetch=False, timeout=1) == tmp_path / "first.th"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodecUnavailable, match=r"no weights at '.*nowhere'.*http://127"):
        locate("c", source(), tmp_path / "nowhere", fetch=True, timeout=1)
    with pytest.raises(CodecUnavailable, match=r"none of first\.th, second\.th"):
        locate("c", source(), tmp_path, fetch=True, timeout=1)
    with pytest.raises(CodecUnavailable, match=r"not allowed.*http://127.*checkpoints/weights\.th"):
        locate("c", source(), None, fetch=False, timeout=1)


def test_a_download_is_kept(serve: Serve) -> None:
    requests = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        requests.append(handler.path)
        send(handler, BODY)

    one = source(serve(answer), hashlib.sha256(BODY).hexdigest()[:8])
    for _ in range(2):
        path = locate("c", one, None, fetch=True, timeout=5)
        assert path == download_folder() / "weights.th"
        assert path.read_bytes() == BODY
    assert requests == ["/weights.th"]
    assert [p.name for p in download_folder().iterdir()] == ["weights.th"]


def _refuse(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def _cut(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, BODY[:1000], claim=len(BODY))


def _altered(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, BODY[::-1])


def _never(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(5)


def _stall(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, BODY[:1000], claim=len(BODY))
    handler.wfile.flush()
    time.sleep(5)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_refuse, "404"),
        (_cut, "1000 of 2560000 bytes|IncompleteRead"),
        (_altered, "sha256"),
        (_never, "no answer|timed out"),
        (_stall, "no answer|timed out"),
    ],
)
def test_a_failed_download_is_said_in_time_and_leaves_nothing(
    serve: Serve, answer: Callable[[http.server.BaseHTTPRequestHandler], None], reason: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(CodecUnavailable, match=f"failed.*({reason})"):
        locate("c", source(serve(answer), hashlib.sha256(BODY).hexdigest()[:8]), None, fetch=True, timeout=0.5)
    assert time.monotonic() - begun < 4
    assert list(download_folder().iterdir()) == []


def test_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    begun = time.monotonic()
    with pytest.raises(CodecUnavailable, match="no answer for 0"):
        locate("c", source("http://weights.invalid/weights.th"), None, fetch=True, timeout=0.4)
    assert time.monotonic() - begun < 3


def test_a_trickle_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "TOTAL_PATIENCE", 3)
    done = threading.Event()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, b"", claim=1 << 30)
        while not done.wait(0.01):
            handler.wfile.write(bytes(1 << 18))

    with pytest.raises(CodecUnavailable, match="not done after"):
        locate("c", source(serve(answer)), None, fetch=True, timeout=0.3)
    done.set()


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def test_a_malicious_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"best_state": {"encoder.w": torch.zeros(1)}, "xp.cfg": Malicious()}, "a.th")
    Path("b.th").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("a.th", "b.th"):
        with pytest.raises(CodecUnavailable, match=name):
            read_state(Path(name))
    assert not Path("executed").exists()


@pytest.mark.parametrize("suffix", [".th", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04" + bytes(50)])
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CodecUnavailable, match="broken"):
        read_state(path)


def test_pointers_and_other_objects_are_named(tmp_path: Path) -> None:
    torch.save({"pretrained": "facebook/encodec_32khz", "exported": True}, tmp_path / "a.th")
    with pytest.raises(CodecUnavailable, match="only refers to 'facebook/encodec_32khz'"):
        read_state(tmp_path / "a.th")
    torch.save([torch.zeros(1)], tmp_path / "b.th")
    with pytest.raises(CodecUnavailable, match="holds a list"):
        read_state(tmp_path / "b.th")


def test_tensors_come_back_from_both_formats(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.th")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.th"):
        back = read_state(path)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)
