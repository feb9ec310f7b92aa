"""What `serve` refuses, in one line and with exit code 2; and its password file."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from command import run
from page_server import small_checkpoint, write_song

from adaptive_window.errors import UsageError
from adaptive_window.page.server import address, bind, read_auth
from adaptive_window.page.songs import Refused, read_song
from adaptive_window.page.strip import place, problem_value, strip_value


@pytest.fixture
def password(tmp_path):
    path = tmp_path / "password"
    path.write_text("pass word\nnotes\n")
    path.chmod(0o600)
    return path


def test_a_password(password):
    check = read_auth(f"anna:{password}")
    assert check("anna", "pass word")
    for user, given in (("anna", "pass word\n"), ("anna", ""), ("Anna", "pass word"), ("", ""), ("ännä", "pässword")):
        assert not check(user, given)


@pytest.mark.parametrize("option", ["anna", ":FILE", "anna:", "anna:FILE.missing", ""])
def test_no_password(password, option):
    with pytest.raises(UsageError, match="--auth"):
        read_auth(option.replace("FILE", str(password)))


def test_a_password_that_is_none(password):
    password.write_text("\npass\n")
    with pytest.raises(UsageError, match="first line"):
        read_auth(f"anna:{password}")
    password.write_bytes(b"\xff\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        read_auth(f"anna:{password}")


def test_a_password_that_everybody_can_read(password):
    password.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_auth(f"anna:{password}")


def test_a_port_in_use(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("serve", "--port", port, "--uploads", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"--port {port}" in error
    assert "in use" in error
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("options", [["--port", 70000], ["--port", -1], ["--jobs", 0], ["--keep-minutes", 0]])
def test_numbers_out_of_bounds(capsys, options):
    assert run("serve", *options) == 2
    assert options[0] in capsys.readouterr().err


def test_a_host_that_is_not_here(capsys):
    assert run("serve", "--host", "192.0.2.1", "--port", 0) == 2
    assert "--host 192.0.2.1" in capsys.readouterr().err


def test_an_address_to_open():
    with bind("127.0.0.1", 0) as listener:
        assert address("127.0.0.1", listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert address("::1", listener).startswith("http://[::1]:")


WITHOUT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("gradio", "uvicorn", "fastapi", "plotly", "starlette"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Block())
from adaptive_window import cli
import adaptive_window.cli.commands
code = cli.main(["compose", *sys.argv[1:5], "--device", "cpu", "-o", sys.argv[5]])
raise SystemExit(code or cli.main(["serve", "--port", "0"]))
"""


def test_without_the_extra(tmp_path):
    """Other commands work; serve says what to install."""
    checkpoint = small_checkpoint(tmp_path / "small.safetensors")
    song, out = write_song(tmp_path / "a.wav", 8.0), tmp_path / "out.wav"
    given = [song, song, "--checkpoint", checkpoint, out]
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, given)], capture_output=True, text=True, timeout=300, check=False
    )
    assert out.exists(), ran.stderr
    assert ran.returncode == 2
    assert 'pip install "adaptive-window[page]"' in ran.stderr


def test_where_a_clip_begins(tmp_path):
    song = read_song(write_song(tmp_path / "a.wav", 10.0), 16_000, 6.0)
    value = strip_value("Song <A>", song, 6.0)
    assert value["label"] == "Song &lt;A&gt;"
    assert place({**value, "at": 3.999}, song, "Song A", 6.0) == 3.999
    assert place({**value, "at": value["most"]}, song, "Song A", 6.0) == pytest.approx(4.0)
    for at in (-0.1, 4.1, "3", None, float("nan"), float("inf"), True, [1], {}):
        with pytest.raises(Refused, match=r"between 0 and 4\.00 s"):
            place({"at": at}, song, "Song A", 6.0)
    for nothing in (None, "x", 3, []):
        with pytest.raises(Refused, match="between"):
            place(nothing, song, "Song A", 6.0)


def test_a_problems_text_is_no_markup():
    assert problem_value("<img src=x>")["problem"] == "&lt;img src=x&gt;"
