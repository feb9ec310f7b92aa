"""`adaptive-window refine` end to end, on synthesized audio."""

import json

import numpy as np
import pytest
import soundfile
import torch
from command import run

from adaptive_window.audio.codec import Codec
from adaptive_window.audio.synthesis import synthesize_pair
from adaptive_window.inference import refine_songs
from adaptive_window.storage.outputs import LEDGER

RATE = 16000
SIZES = ["--clip-seconds", "12", "--window-seconds", "8"]


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """A song, 8 s of it from second 6.5 on, quieter, and another song."""
    folder = tmp_path_factory.mktemp("songs")
    song, other = (synthesize_pair(seed, seconds=17.0, sample_rate=RATE).input for seed in (1, 2))
    noise = 0.002 * np.random.default_rng(0).standard_normal(8 * RATE)
    part = 0.3 * song[round(6.5 * RATE) :][: 8 * RATE] + noise
    for name, audio in (("song", song), ("part", part), ("other", other)):
        soundfile.write(folder / f"{name}.wav", audio, RATE)
    return folder


def test_a_match(songs, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("refine", songs / "song.wav", songs / "part.wav", "-o", out, "--at", 4, "--at-target", 0, *SIZES) == 0
    printed = capsys.readouterr()
    report = json.loads((out / "refine.json").read_text())
    assert json.loads(printed.out) == report
    assert printed.err.startswith("match: input 6.5")
    assert report["verdict"] == "match"
    assert report["score"] >= report["threshold"]
    assert report["input"]["start_s"] == pytest.approx(6.5, abs=0.02)  # a frame
    assert report["input"]["ratio"] == pytest.approx(1, abs=0.005)
    assert report["input"]["end_s"] == pytest.approx(report["input"]["start_s"] + 8 * report["input"]["ratio"])
    assert (report["target"]["start_s"], report["target"]["ratio"]) == (0.0, 1.0)
    assert not report["white_in_time"]
    assert {path.name for path in out.iterdir()} == {*report["files"], LEDGER}
    for name in ("window_input", "window_target", "cut_target"):
        assert len(soundfile.read(out / f"{name}.wav")[0]) == 8 * RATE
    cut = soundfile.read(out / "cut_input.wav")[0]
    begin = round(report["input"]["start_s"] * RATE)
    np.testing.assert_allclose(cut, soundfile.read(songs / "song.wav")[0][begin:][: len(cut)], atol=1e-3)
    assert soundfile.info(out / "cut_input.wav").frames == pytest.approx(8 * RATE * report["input"]["ratio"], abs=2)
    assert (out / "windows.png").stat().st_size > 20000


def test_unrelated_songs_are_no_match(songs, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("refine", songs / "song.wav", songs / "song.wav", "-o", out, *SIZES) == 0
    assert (out / "cut_input.wav").exists()
    capsys.readouterr()
    assert run("refine", songs / "song.wav", songs / "other.wav", "-o", out, *SIZES) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "no match"
    assert report["score"] < report["threshold"]
    assert {path.name for path in out.iterdir()} == {"windows.png", "refine.json", LEDGER}


@pytest.mark.parametrize(("move", "moved"), [("target", {"target"}), ("both", {"input", "target"})])
def test_the_other_song_or_both_move(songs, tmp_path, capsys, move, moved):
    options = ["--move", move, "--at", 4, *SIZES] if move == "both" else ["--move", move, "--at-target", 4, *SIZES]
    first, second = ("song.wav", "song.wav") if move == "both" else ("part.wav", "song.wav")
    assert run("refine", songs / first, songs / second, "-o", tmp_path / "out", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "match"
    assert report["moved"] == move
    if move == "target":
        assert report["target"]["start_s"] == pytest.approx(6.5, abs=0.02)
        assert report["input"]["ratio"] == 1.0
    else:  # a song against itself: any window matches itself
        assert report["input"]["start_s"] == pytest.approx(report["target"]["start_s"], abs=0.04)


class SampleCodec(Codec):
    """A frame's latent is its 128 samples: of noise, latents without memory from frame to frame."""

    name, fingerprint, sample_rate, hop, device = "samples", "0" * 16, 6400, 128, torch.device("cpu")

    def to(self, device):
        return self

    def _encode(self, audio):
        return audio.reshape(len(audio), -1, 128).transpose(1, 2)

    def _decode(self, latents):
        return latents.transpose(1, 2).reshape(len(latents), 1, -1)


@pytest.mark.parametrize("features", ["latent", "energy"])
def test_latents_white_in_time_are_named(tmp_path, capsys, monkeypatch, features):
    monkeypatch.setattr(refine_songs, "load_codec", lambda *args, **options: SampleCodec())
    for seed, name in enumerate(("a", "b")):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(12 * 6400)
        soundfile.write(tmp_path / f"{name}.wav", noise, 6400)
    options = ["-o", tmp_path / "out", "--features", features, *SIZES]
    assert run("refine", tmp_path / "a.wav", tmp_path / "b.wav", *options) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["white_in_time"]
    assert abs(report["lag_one_autocorrelation"]) < 0.02
    assert report["verdict"] == "no match"
    warned = "white in time" in printed.err and "--features energy" in printed.err
    assert warned == (features == "latent")


def test_bad_commands_exit_with_2(songs, tmp_path, capsys):
    song, part = songs / "song.wav", songs / "part.wav"
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    for arguments, wanted in [
        ((song,), "target"),
        ((song, tmp_path / "gone.wav"), "gone.wav"),
        ((song, part, "--at-target", 1, *SIZES), "only 7.00 s from 1 s on"),
        ((song, part, "--clip-seconds", 4), "--clip-seconds 4 is shorter than --window-seconds 16"),
        ((song, part, "--clip-seconds", 1, "--window-seconds", 0.01), "less than two frames"),
        ((song, part, "--max-ratio", 0.5), "--max-ratio"),
        ((song, part, "--move", "neither"), "neither"),
        ((song, part, "--features", "mfcc"), "mfcc"),
        ((song, part, "--random-codec"), "mel"),
        ((song, part, "--features", "rhythm", "--move", "both", *SIZES), "not --move both"),
        ((song, part, "-o", tmp_path / "file", *SIZES), "is a file"),
    ]:
        capsys.readouterr()
        options = () if "-o" in arguments else ("-o", out)
        assert run("refine", *arguments, *options) == 2, arguments
        message = capsys.readouterr().err
        assert wanted in message, (wanted, message)
        assert "Traceback" not in message
    assert not out.exists()


def strict(text):
    """JSON as the standard has it: NaN and Infinity are none."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_a_silent_song_is_named(songs, tmp_path, capsys, which, level):
    noise = level * np.random.default_rng(0).standard_normal(24 * RATE)
    soundfile.write(tmp_path / "silence.wav", noise, RATE, subtype="FLOAT")
    pair = [songs / "song.wav", tmp_path / "silence.wav"]
    assert run("refine", *(pair if which else pair[::-1]), "-o", tmp_path / "out", *SIZES) == 2
    message = capsys.readouterr().err
    assert "silence.wav" in message
    assert "silent from 0 s on" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("features", ["latent", "energy", "difference", "rhythm"])
def test_a_song_with_a_long_silence_gives_a_score(songs, tmp_path, capsys, features):
    """One note at the beginning, nothing after it: whatever is found, it is a number, and no match."""
    audio = np.zeros(12 * RATE)
    audio[:800] = 0.5
    soundfile.write(tmp_path / "note.wav", audio, RATE)
    out = tmp_path / "out"
    code = run("refine", songs / "song.wav", tmp_path / "note.wav", "-o", out, "--features", features, *SIZES)
    assert code == 0
    report = strict(capsys.readouterr().out)
    assert report == strict((out / "refine.json").read_text())
    assert -1 <= report["score"] < report["threshold"]


@pytest.mark.parametrize("at", ["0:04", "4s", "00:00:04.0", "4"])
def test_places_as_people_write_them(songs, tmp_path, capsys, at):
    options = ["-o", tmp_path / "out", "--at", at, "--at-target", "0:00", *SIZES]
    assert run("refine", songs / "song.wav", songs / "part.wav", *options) == 0
    report = strict(capsys.readouterr().out)
    assert report["input"]["clip_at_s"] == 4.0
    assert report["verdict"] == "match"
