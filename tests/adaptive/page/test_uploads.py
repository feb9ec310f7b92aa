"""The uploads' folder: what is in it goes with its session, by age and at exit; nothing else is ever removed."""

from __future__ import annotations

import os
import time

import pytest

from adaptive_window.errors import UsageError
from adaptive_window.page.uploads import LOCK, PREFIX, Uploads


@pytest.fixture
def uploads(tmp_path):
    made = Uploads(tmp_path / "up", age_seconds=1000)
    yield made
    made.close()


def upload(uploads, name, content=b"x"):
    folder = uploads.root / name
    folder.mkdir(exist_ok=True)
    (folder / "song.wav").write_bytes(content)
    return folder / "song.wav"


def test_is_for_its_owner_alone(uploads):
    assert uploads.root.stat().st_mode & 0o077 == 0


def test_a_session_takes_along_what_only_it_used(uploads):
    shared, own = upload(uploads, "aa"), upload(uploads, "bb")
    for session in ("one", "two"):
        uploads.use(session, shared)
        (uploads.job(session) / "pattern.wav").touch()
    uploads.use("one", own)
    uploads.end("one")
    assert shared.exists()
    assert not own.exists()
    assert len(list(uploads.root.glob("session-*"))) == 1
    uploads.end("two")
    assert [entry.name for entry in uploads.root.iterdir()] == [LOCK]


def test_a_session_that_ends_leaves_the_examples(uploads):
    example = upload(uploads, "examples")
    uploads.use("one", example)
    uploads.end("one")
    assert example.exists()


def test_a_session_may_end_that_never_did_anything(uploads):
    uploads.end("nobody")
    assert [entry.name for entry in uploads.root.iterdir()] == [LOCK]


@pytest.mark.parametrize("name", ["../../x", "/etc", "a\0b", "x" * 5000, ""])
def test_a_sessions_name_chooses_no_folder(uploads, name):
    assert uploads.session(name).parent == uploads.root


def test_by_age(uploads):
    old, new, used = upload(uploads, "aa"), upload(uploads, "bb"), upload(uploads, "cc")
    example = upload(uploads, "examples")
    long_ago = time.time() - 2000
    for path in (old, used, example):
        os.utime(path, (long_ago, long_ago))
        os.utime(path.parent, (long_ago, long_ago))
    uploads.use("one", used)
    uploads.sweep()
    assert not old.parent.exists()
    assert new.exists()
    assert used.exists()
    assert example.exists()


def test_holds_what_is_inside(uploads, tmp_path):
    song = upload(uploads, "aa")
    outside = tmp_path / "secret.wav"
    outside.touch()
    (uploads.root / "aa" / "link.wav").symlink_to(outside)
    (uploads.root / "out").symlink_to(tmp_path)
    (uploads.root / "aa" / "loop").symlink_to(uploads.root / "aa" / "loop")
    assert uploads.holds(song)
    assert uploads.holds(f"{uploads.root}/bb/../aa/song.wav")
    for path in (
        outside,
        uploads.root,
        uploads.root.parent,
        f"{uploads.root}x/song.wav",
        f"{uploads.root}/../secret.wav",
        uploads.root / "aa" / "link.wav",
        uploads.root / "out" / "secret.wav",
        uploads.root / "aa" / "loop",
        uploads.root / LOCK,
        uploads.root / "aa" / ".hidden",
        "a\0b",
        "",
        "http://127.0.0.1/x",
        "x" * 100_000,
    ):
        assert not uploads.holds(path), path


def test_what_a_killed_server_left_goes_and_a_living_ones_stays(tmp_path):
    killed = tmp_path / f"{PREFIX}killed"
    (killed / "aa").mkdir(parents=True)
    (killed / LOCK).touch()
    foreign = tmp_path / f"{PREFIX}foreign"  # no lock: nobody says that it is ours
    foreign.mkdir()
    (tmp_path / "mine.wav").touch()
    living = Uploads(tmp_path, age_seconds=1000)
    another = Uploads(tmp_path, age_seconds=1000)
    try:
        assert not killed.exists()
        assert living.root.exists()
        assert foreign.exists()
        assert (tmp_path / "mine.wav").exists()
    finally:
        another.close()
        living.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [foreign.name, "mine.wav"]


def test_no_folder_can_be_made_there(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--uploads"):
        Uploads(tmp_path / "file", age_seconds=1000)
