"""What may be written: nothing that is read, by whatever name it is reached, and nothing that we did not write."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adaptive_window.errors import UsageError
from adaptive_window.storage import outputs
from adaptive_window.storage.outputs import claim, made_in, remove, remove_folder, write_text, writing, wrote


def ways_to(file: Path, folder: Path) -> dict[str, Path]:
    """Other names of a file."""
    os.symlink(file, folder / "symlink")
    os.symlink(folder / "symlink", folder / "chain")
    os.link(file, folder / "hardlink")
    os.symlink(file.parent, folder / "linked folder")
    return {
        "itself": file,
        "dots": file.parent / "." / ".." / file.parent.name / file.name,
        "relative": Path(os.path.relpath(file)),
        "symlink": folder / "symlink",
        "chain of symlinks": folder / "chain",
        "hard link": folder / "hardlink",
        "folder that is a link": folder / "linked folder" / file.name,
    }


WAYS = ("itself", "dots", "relative", "symlink", "chain of symlinks", "hard link", "folder that is a link")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_what_is_read_is_never_written(tmp_path: Path, way: str, overwrite: bool, ours: bool) -> None:
    (tmp_path / "songs").mkdir()
    (tmp_path / "else").mkdir()
    song = tmp_path / "songs" / "a.wav"
    if ours:
        write_text(song, "music")
    else:
        song.write_text("music")
    name = ways_to(song, tmp_path / "else")[way]
    with pytest.raises(UsageError, match="a file that this command reads"):
        claim(tmp_path / "free", name, reads=[None, tmp_path / "gone", song], overwrite=overwrite)
    with pytest.raises(UsageError, match="a file that this command reads"):
        claim(song, reads=[name], overwrite=overwrite)


def test_a_name_that_differs_in_case_is_the_file_that_the_file_system_says(tmp_path: Path) -> None:
    """Stated by `samefile`: on a file system that folds case `A.WAV` opens `a.wav`, and is refused as such."""
    song = tmp_path / "a.wav"
    song.write_text("music")
    other = tmp_path / "A.WAV"
    if other.exists():
        with pytest.raises(UsageError, match="reads"):
            claim(other, reads=[song])
    else:
        claim(other, reads=[song])


def test_what_somebody_else_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("mine")
    for attempt in (lambda: claim(path, advice="name another -o"), lambda: write_text(path, "ours")):
        with pytest.raises(UsageError, match="this command did not write it"):
            attempt()
    assert not remove(path)
    assert path.read_text() == "mine"
    claim(path, overwrite=True)
    write_text(path, "ours", overwrite=True)
    assert path.read_text() == "ours"


def test_what_we_wrote_is_replaced_until_somebody_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("first", "second", "second"):
        claim(path)
        write_text(path, text)
        assert path.read_text() == text
        assert wrote(path)
    path.write_text("second, and my notes")
    with pytest.raises(UsageError, match="or it was changed since"):
        write_text(path, "third")
    assert not remove(path)
    assert path.read_text() == "second, and my notes"


def test_a_copy_or_a_renamed_result_is_the_users(tmp_path: Path) -> None:
    write_text(tmp_path / "out.wav", "pattern")
    (tmp_path / "keep.wav").write_text("pattern")
    with pytest.raises(UsageError):
        claim(tmp_path / "keep.wav")
    (tmp_path / "out.wav").rename(tmp_path / "best.wav")
    with pytest.raises(UsageError):
        claim(tmp_path / "best.wav")


def test_a_write_that_fails_or_is_killed_leaves_the_file_before_it_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "first")

    def fail() -> None:
        with writing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "first"
    with writing(path) as temporary:
        temporary.write_text("second")
    outputs._append(path, outputs._digest(path)[::-1], False)  # entered, then killed before it took its name
    with open(tmp_path / outputs.LEDGER, "a") as file:
        file.write('{"name": "a.js')  # killed within the line
    assert wrote(path)
    write_text(tmp_path / "b.json", "after")
    assert wrote(tmp_path / "b.json")


def test_a_link_stays_one_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    link = tmp_path / "out.wav"
    os.symlink(tmp_path / "big disk" / "out.wav", link)
    for text in ("first", "second"):
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "big disk" / "out.wav").read_text() == text
    (tmp_path / "big disk" / "out.wav").write_text("mine")
    with pytest.raises(UsageError):
        write_text(link, "third")


@pytest.mark.parametrize("kind", ["folder", "pipe", "no folder", "loop"])
def test_what_is_no_place_for_a_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "no folder":
        path = tmp_path / "none" / "out.wav"
    else:
        os.symlink(path, path)
    with pytest.raises((UsageError, OSError), match=r"folder|regular|symbolic"):
        claim(path, overwrite=True)


def test_a_folder_that_cannot_be_written_is_named(unprivileged: Path) -> None:
    unprivileged.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        claim(unprivileged / "a.wav")
    unprivileged.chmod(0o700)


def test_a_folder_is_removed_only_where_all_of_it_is_ours(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "examples").mkdir(parents=True)
    write_text(run / "examples" / "a.wav", "ours")
    outputs.growing(run / "metrics.jsonl").write_text("{}\n")
    (run / "metrics.jsonl").write_text("{}\n{}\n")  # it grows
    (run / ".lock").write_text("process 1 on here\n")
    (run / "examples" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"did not write '.*notes\.txt'"):
        remove_folder(run)
    assert (run / "examples" / "a.wav").exists()
    (run / "examples" / "notes.txt").unlink()
    os.symlink(tmp_path, run / "elsewhere")
    with pytest.raises(UsageError, match="elsewhere"):
        remove_folder(run)
    (run / "elsewhere").unlink()
    remove_folder(run)
    assert not run.exists()


def test_a_growing_file_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(UsageError):
        outputs.growing(tmp_path / "metrics.jsonl")
    assert not wrote(tmp_path / "metrics.jsonl")


def test_results_are_told_from_music_made_to_train_on(tmp_path: Path) -> None:
    write_text(tmp_path / "composed.wav", "pattern")
    with writing(tmp_path / "song.wav", song=True) as temporary:
        temporary.write_text("song")
    (tmp_path / "mine.wav").write_text("mine")
    assert made_in(tmp_path) == {"composed.wav"}
    assert made_in(tmp_path / "none") == set()


def test_many_write_into_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: write_text(tmp_path / f"{k}.json", str(k)), range(64)))
    assert all(wrote(tmp_path / f"{k}.json") for k in range(64))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9\n.wav")
    write_text(path, "first")
    write_text(path, "second")
    assert wrote(path)


@pytest.mark.parametrize("line", ["", "[]", "3", '{"name": "a"}', "\x00", '{"name": ["a"], "sha256": 3}'])
def test_a_ledger_of_nonsense_makes_nothing_ours(tmp_path: Path, line: str) -> None:
    (tmp_path / "a").write_text("mine")
    (tmp_path / outputs.LEDGER).write_text(line + "\n")
    assert not wrote(tmp_path / "a")
    assert made_in(tmp_path) == set()


def test_the_ledger_says_what_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ours")
    first = json.loads((tmp_path / outputs.LEDGER).read_text().splitlines()[0])
    assert "adaptive-window" in first["about"]


def test_what_another_kind_of_command_wrote_stays(tmp_path: Path) -> None:
    """`compose -o RUN/summary.wav` would put its JSON in the place of the run's summary.json."""
    path = tmp_path / "summary.json"
    with outputs.acting("train"), outputs.acting("compose"):  # a command within another writes for that
        write_text(path, "of the run")
    with outputs.acting("compose"):
        with pytest.raises(UsageError, match="this command did not write it"):
            claim(path)
        outputs.take_over(tmp_path)
        assert wrote(path)
    with outputs.acting("train"):
        assert wrote(path)
    assert not wrote(path)
