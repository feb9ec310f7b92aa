"""The page has no way of its own: it calls what `compose` and `refine` call, and its files are theirs, bit for bit."""

from __future__ import annotations

import json

import pytest
import soundfile
import torch
from command import run
from page_server import small_checkpoint, write_song

from adaptive_window.inference.compose import open_engine
from adaptive_window.page import composing, matching
from adaptive_window.page.composing import Wish, compose, cut_windows
from adaptive_window.page.matching import Search, match
from adaptive_window.page.songs import read_song


def silently(text):
    pass


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    checkpoint = small_checkpoint(folder / "small.safetensors")
    paths = [write_song(folder / name, 15.0, seed=seed) for seed, name in enumerate(("a.wav", "b.wav"))]
    engine = open_engine(checkpoint, device="cpu")
    songs = tuple(read_song(path, engine.codec.sample_rate, engine.clip_seconds) for path in paths)
    return folder, checkpoint, engine, songs


@pytest.mark.parametrize("pick", ["mean", "best", "1"])
def test_a_composition_is_the_commands(studio, tmp_path, monkeypatch, pick):
    _, checkpoint, engine, songs = studio
    (tmp_path / "page").mkdir()
    made = compose(engine, Wish(songs, (3.35, 1.0), pick), tmp_path / "page", silently)
    monkeypatch.chdir(tmp_path)
    for song in songs:
        (tmp_path / song.name).symlink_to(song.path)
    options = ["-o", "pattern.wav", "--checkpoint", checkpoint, "--pick", pick, "--at", 3.35, "--at-target", 1.0]
    assert run("compose", "a.wav", "b.wav", *options, "--device", "cpu") == 0
    for name in ("pattern.wav", "pattern.json"):
        assert (tmp_path / "page" / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert made.report == json.loads((tmp_path / "pattern.json").read_text())


def test_windows_to_hear(studio, tmp_path):
    _, _, engine, songs = studio
    made = compose(engine, Wish(songs, (3.35, 1.0), "mean"), tmp_path, silently)
    rate = engine.codec.sample_rate
    clip = soundfile.read(made.clips[0])[0]
    assert len(clip) == engine.clip_seconds * rate
    song = soundfile.read(songs[0].path)[0]
    torch.testing.assert_close(clip, song[round(3.35 * rate) :][: len(clip)], atol=2**-14, rtol=0)
    files = cut_windows(engine, made, silently)
    assert len(files) == 3
    for pair, heard in zip(made.pairs, files, strict=True):
        for letter, start, ratio in (
            ("a", pair.start_input, pair.ratio_input),
            ("b", pair.start_target, pair.ratio_target),
        ):
            cut = soundfile.read(heard[f"cut_{letter}"])[0]
            assert len(cut) == pytest.approx(ratio * engine.window_seconds * rate, abs=1)
            if letter == "a":
                begin = round(start * rate)
                torch.testing.assert_close(cut, clip[begin : begin + len(cut)], atol=2**-14, rtol=0)
            assert len(soundfile.read(heard[f"compressed_{letter}"])[0]) == engine.window_seconds * rate


def test_a_match_is_the_commands(studio, tmp_path, monkeypatch):
    _, _, engine, songs = studio
    same = (songs[0], songs[0])
    (tmp_path / "page").mkdir()
    found = match(engine, Search(same, (2.0, 4.0), "latent", 10.0), tmp_path / "page", silently)
    assert found.report["verdict"] == "match"
    assert found.report["input"]["start_s"] == pytest.approx(4.0, abs=0.05)
    assert found.report["input"]["ratio"] == pytest.approx(1.0, abs=0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").symlink_to(songs[0].path)
    sizes = ["--clip-seconds", 10.0, "--window-seconds", engine.window_seconds, "--at", 2.0, "--at-target", 4.0]
    assert run("refine", "a.wav", "a.wav", "-o", "out", *sizes, "--device", "cpu") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    assert sorted(path.name for path in found.files) == names
    for name in names:
        assert (tmp_path / "page" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    seconds = len(soundfile.read(found.sound)[0]) / engine.codec.sample_rate
    assert seconds == pytest.approx(3 * engine.window_seconds + 2 * matching.PAUSE, abs=0.01)


def test_no_match_has_no_sound(studio, tmp_path):
    _, _, engine, songs = studio
    found = match(engine, Search(songs, (0.0, 0.0), "latent", 8.0), tmp_path, silently)
    assert found.report["verdict"] == "no match"
    assert found.sound is None
    assert sorted(path.name for path in found.files) == ["refine.json", "windows.png"]


def test_they_are_called(studio, tmp_path, monkeypatch):
    """Each of the commands' functions is the page's only way: without it nothing comes out."""
    _, _, engine, songs = studio

    class Called(Exception):
        pass

    def called(*arguments, **options):
        raise Called

    wish, search = Wish(songs, (0.0, 0.0), "mean"), Search(songs, (0.0, 0.0), "latent", 8.0)
    for name in ("open_session", "compose_clips", "write_composition"):
        with monkeypatch.context() as patch:
            patch.setattr(composing, name, called)
            with pytest.raises(Called):
                compose(engine, wish, tmp_path, silently)
    monkeypatch.setattr(matching, "match_songs", called)
    with pytest.raises(Called):
        match(engine, search, tmp_path, silently)


def test_the_picture_has_the_windows_where_they_are(studio, tmp_path):
    _, _, engine, songs = studio
    made = compose(engine, Wish(songs, (3.35, 1.0), "mean"), tmp_path, silently)
    traces = [trace for trace in made.picture.data if trace.type == "scatter" and len(trace.x) == 5]
    assert len(traces) == 6
    pair = made.pairs[1]
    assert list(traces[2].x[:2]) == pytest.approx(
        [pair.start_input, pair.start_input + pair.ratio_input * engine.window_seconds]
    )
    assert f"{3.35 + pair.start_input:.2f} s to" in traces[2].hovertemplate, "seconds of the song"
    assert len({trace.line.dash for trace in traces}) == 3, "pairs differ in grey too"
    lightness = [trace for trace in made.picture.data if trace.type == "heatmap"]
    assert [image.z.shape for image in lightness] == [(128, 300), (128, 300)]
