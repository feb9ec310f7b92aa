"""Which songs become pairs, how they are split, where clips are cut, and that no bad file becomes zeros."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from adaptive_window.audio.cache import LatentCache
from adaptive_window.audio.dataset import ClipDataset, DataError, Example, files_of, find_bad, find_examples
from adaptive_window.audio.files import AUDIO_SUFFIXES, AudioError
from adaptive_window.audio.mel import MelCodec

RATE = 16000
CLIP = 50  # frames: 1 s


@pytest.fixture(scope="module")
def codec() -> MelCodec:
    return MelCodec()


def song(path: Path, seconds: float = 2.0, seed: int | None = None, gain: float = 0.3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(os.fsencode(path.name)) if seed is None else seed)
    soundfile.write(path, (gain * rng.uniform(-1, 1, round(seconds * RATE))).astype(np.float32), RATE)
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def clips(
    folder: Path, codec: MelCodec, examples: list[Example] | None = None, *, in_memory: bool = True, **options: object
) -> ClipDataset:
    examples = find_examples(folder)[0] if examples is None else examples
    cache = LatentCache(None if in_memory else folder / ".cache", codec)
    return ClipDataset(examples, cache, clip_frames=CLIP, **options)  # type: ignore[arg-type]  # options vary


def bad_of(folder: Path, codec: MelCodec, examples: list[Example], max_bad: float) -> dict[str, str]:
    """Name -> reason."""
    bad = find_bad(files_of(*examples), LatentCache(folder / ".cache", codec), CLIP, max_bad=max_bad)
    return {path.name: reason for path, reason in bad.items()}


def latents_of(dataset: ClipDataset, path: Path) -> torch.Tensor:
    return dataset.cache.latents(path)


def place(whole: torch.Tensor, clip: torch.Tensor) -> int:
    """Where in `whole` the clip was cut; it is there exactly once."""
    found = [t for t in range(whole.shape[1] - CLIP + 1) if torch.equal(whole[:, t : t + CLIP], clip)]
    assert len(found) == 1
    return found[0]


# Which songs


def test_pairs_of_train_and_val_folders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *("train/a_input.wav", "train/a_target.flac", "train/sub/a_input.mp3", "train/sub/a_output.wav"),
        *("val/B_INPUT.wav", "val/B_Output.ogg", "other.wav"),
    )
    train, val = find_examples(tmp_path)
    assert train == [
        Example(tmp_path / "train/a_input.wav", tmp_path / "train/a_target.flac", "a", aligned=True),
        Example(tmp_path / "train/sub/a_input.mp3", tmp_path / "train/sub/a_output.wav", "sub/a", aligned=True),
    ]
    assert [(e.input.name, e.target.name, e.name) for e in val] == [("B_INPUT.wav", "B_Output.ogg", "B")]


@pytest.mark.parametrize("folder", ["", "train/", "val/"])
def test_one_folder_of_pairs_is_split_by_song(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, *(f"{folder}song{k:02d}_{half}.wav" for k in range(20) for half in ("input", "target")))
    train, val = find_examples(tmp_path, seed=1)
    assert (len(train), len(val)) == (18, 2)
    assert {e.name for e in train} | {e.name for e in val} == {f"song{k:02d}" for k in range(20)}
    assert find_examples(tmp_path, seed=1) == (train, val)
    others = [{e.name for e in find_examples(tmp_path, seed=seed)[1]} for seed in range(2, 8)]
    assert any(other != {e.name for e in val} for other in others)


def test_songs_are_split_and_then_paired(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{k}.wav" for k in range(30)))
    train, val = find_examples(tmp_path)
    songs = [{path for e in part for path in (e.input, e.target)} for part in (train, val)]
    assert (len(songs[0]), len(songs[1])) == (27, 3)
    assert not songs[0] & songs[1]  # no song is heard in training and validated on
    for part in (train, val):
        assert all(e.input != e.target and not e.aligned for e in part)
        assert len({e.input for e in part}) == len({e.target for e in part}) == len(part)


def test_which_songs_make_a_pair_follows_from_the_seed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, *(f"{folder}/{k}.wav" for k in range(10) for folder in ("train", "val")))
    first = find_examples(tmp_path)
    assert find_examples(tmp_path) == first
    assert find_examples(tmp_path, seed=1) != first
    assert caplog.text == ""
    assert find_examples(tmp_path, shuffle_targets=True) == first
    assert "by chance already" in caplog.text


def test_a_single_pair_keeps_its_target_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, *(f"{k}_{half}.wav" for k in range(4) for half in ("input", "target")))
    train, val = find_examples(tmp_path, shuffle_targets=True)
    assert all(e.target.stem != f"{e.name}_target" for e in train)
    assert [e.target.stem for e in val] == [f"{val[0].name}_target"]
    assert f"'{val[0].name}' is the only song" in caplog.text


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (3, 1), (14, 1), (16, 2)])
def test_at_least_one_song_is_held_out(tmp_path: Path, count: int, held_out: int) -> None:
    touch(tmp_path, *(f"{k}.wav" for k in range(count)))
    train, val = find_examples(tmp_path)
    assert (len({e.input for e in train}), len({e.input for e in val})) == (count - held_out, held_out)


def test_a_single_song_is_its_own_validation_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "only.wav")
    train, val = find_examples(tmp_path)
    assert train == val == [Example(tmp_path / "only.wav", tmp_path / "only.wav", "only+only")]
    assert "validation uses the song that is trained on" in caplog.text


def test_lone_halves_and_strangers_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(
        tmp_path, "a_input.wav", "a_target.wav", "b_input.wav", "c_output.wav", "d_input.wav", "d_target.wav", "e.wav"
    )
    train, val = find_examples(tmp_path)
    assert {e.name for e in train + val} == {"a", "d"}
    for name in ("b_input.wav", "c_output.wav", "e.wav"):
        assert name in caplog.text
    assert "2 halves" in caplog.text


def test_unity_and_shuffled_targets(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{k}_{half}.wav" for k in range(12) for half in ("input", "target")))
    plain, _ = find_examples(tmp_path)
    unity, unity_val = find_examples(tmp_path, unity_test=True)
    assert all(e.target == e.input and e.aligned for e in unity + unity_val)
    assert [e.input for e in unity] == [e.input for e in plain]
    shuffled, _ = find_examples(tmp_path, shuffle_targets=True)
    assert [e.input for e in shuffled] == [e.input for e in plain]
    assert sorted(e.target for e in shuffled) == sorted(e.target for e in plain)
    assert all(s.target != p.target and not s.aligned for s, p in zip(shuffled, plain, strict=True))
    with pytest.raises(DataError, match="exclude each other"):
        find_examples(tmp_path, unity_test=True, shuffle_targets=True)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*no such folder"):
        find_examples(tmp_path / "nowhere")
    touch(tmp_path, "file.wav", "empty/notes.txt", "half/a_input.wav", "two/a_input.wav", "two/a_input.mp3")
    with pytest.raises(DataError, match=r"file\.wav.*not a folder"):
        find_examples(tmp_path / "file.wav")
    with pytest.raises(DataError, match=r"empty.*no audio found") as caught:
        find_examples(tmp_path / "empty")
    assert all(suffix in str(caught.value) for suffix in AUDIO_SUFFIXES)
    with pytest.raises(DataError, match=r"only halves.*a_input\.wav"):
        find_examples(tmp_path / "half")
    with pytest.raises(DataError, match=r"a_input\.wav.*a_input\.mp3|a_input\.mp3.*a_input\.wav"):
        find_examples(tmp_path / "two")
    touch(tmp_path, "split/train/a.wav", "split/val/notes.txt")
    with pytest.raises(DataError, match=r"val.*no audio found"):
        find_examples(tmp_path / "split")


# Which clips


def test_items_are_clips_of_the_files_they_name(tmp_path: Path, codec: MelCodec) -> None:
    for k in range(4):
        song(tmp_path / f"{k}.wav")
    dataset = clips(tmp_path, codec, clips_per_example=3)
    assert len(dataset) == 9
    for item in (dataset[i] for i in range(9)):
        for half in ("input", "target"):
            clip, path = item[half], Path(str(item[f"{half}_file"]))
            assert isinstance(clip, torch.Tensor)
            assert clip.shape == (128, CLIP)
            assert clip.dtype == torch.float32
            place(latents_of(dataset, path), clip)
    with pytest.raises(IndexError, match=r"\[0, 9\), got 9"):
        dataset[9]


def test_pairs_are_cut_at_one_place_if_of_one_length(tmp_path: Path, codec: MelCodec) -> None:
    song(tmp_path / "train/a_input.wav", 3.0), song(tmp_path / "train/a_target.wav", 3.2)
    song(tmp_path / "train/b_input.wav", 3.0), song(tmp_path / "train/b_target.wav", 9.0)
    song(tmp_path / "val/c_input.wav"), song(tmp_path / "val/c_target.wav")
    dataset = clips(tmp_path, codec, clips_per_example=20)
    places: dict[str, list[tuple[int, int]]] = {"a_input.wav": [], "b_input.wav": []}
    for item in (dataset[i] for i in range(len(dataset))):
        files = Path(str(item["input_file"])), Path(str(item["target_file"]))
        starts = [place(latents_of(dataset, f), item[h]) for f, h in zip(files, ("input", "target"), strict=True)]  # type: ignore[arg-type]  # a tensor
        places[files[0].name].append((starts[0], starts[1]))
    assert all(one == other for one, other in places["a_input.wav"])
    assert len(set(places["a_input.wav"])) > 5
    assert any(one != other for one, other in places["b_input.wav"])
    assert max(other for _, other in places["b_input.wav"]) > 150  # from the whole of the longer file


@pytest.mark.parametrize("aligned", [False, True])
def test_every_place_can_come_up(tmp_path: Path, codec: MelCodec, aligned: bool) -> None:
    path = song(tmp_path / "a.wav", 1.08)  # 54 frames: 5 places
    dataset = clips(tmp_path, codec, [Example(path, path, "a", aligned)], clips_per_example=200)
    starts = {place(latents_of(dataset, path), dataset[i]["target"]) for i in range(200)}  # type: ignore[arg-type]  # a tensor
    assert starts == {0, 1, 2, 3, 4}


def test_crops_follow_from_seed_epoch_and_index(tmp_path: Path, codec: MelCodec) -> None:
    path = song(tmp_path / "a.wav", 20.0)
    examples = [Example(path, path, "a")]

    def epoch(number: int, **options: object) -> list[torch.Tensor]:
        dataset = clips(tmp_path, codec, examples, clips_per_example=4, **options)
        dataset.set_epoch(number)
        return [dataset[i]["input"] for i in range(4)]  # type: ignore[misc]  # tensors

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert same(epoch(0), epoch(0))
    assert not same(epoch(0), epoch(1))
    assert not same(epoch(0), epoch(0, seed=1))
    assert same(epoch(0, random_crops=False), epoch(7, random_crops=False))
    first = epoch(3)
    assert not torch.equal(first[0], first[1])


def test_unity_pairs_are_equal_clips(tmp_path: Path, codec: MelCodec) -> None:
    for k in range(3):
        song(tmp_path / f"{k}.wav", 4.0)
    dataset = clips(tmp_path, codec, find_examples(tmp_path, unity_test=True)[0], clips_per_example=5)
    assert all(torch.equal(item["input"], item["target"]) for item in (dataset[i] for i in range(10)))  # type: ignore[arg-type]  # tensors


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_load_the_same_and_hear_of_the_epoch(tmp_path: Path, codec: MelCodec, method: str) -> None:
    for k in range(3):
        song(tmp_path / f"{k}.wav", 6.0)
    dataset = clips(tmp_path, codec, in_memory=False, clips_per_example=2)
    loader = DataLoader(dataset, 2, num_workers=1, persistent_workers=True, multiprocessing_context=method)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        alone = list(DataLoader(dataset, 2))
        loaded = list(loader)
        assert len(loaded) == len(alone) == 2
        for one, other in zip(loaded, alone, strict=True):
            assert one["input"].shape == (2, 128, CLIP)
            assert torch.equal(one["input"], other["input"])
            assert torch.equal(one["target"], other["target"])
            assert one["input_file"] == other["input_file"]


# Bad files


def test_each_bad_file_is_named_counted_and_left_out(
    tmp_path: Path, codec: MelCodec, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(3):
        song(tmp_path / f"good{k}.wav")
    song(tmp_path / "bad_short.wav", 0.9)
    song(tmp_path / "bad_silent.wav", gain=0.0)
    (tmp_path / "bad_text.wav").write_text("text")
    (tmp_path / "bad_empty.wav").touch()
    os.mkfifo(tmp_path / "bad_pipe.wav")
    (tmp_path / "bad_loop.wav").symlink_to(tmp_path / "bad_loop.wav")
    soundfile.write(tmp_path / "bad_nan.wav", np.full(RATE * 2, np.nan), RATE, subtype="FLOAT")
    examples = [Example(p, p, p.stem) for p in sorted(tmp_path.iterdir())]
    with pytest.raises(DataError, match=r"7 of 10 audio files cannot be used") as caught:
        bad_of(tmp_path, codec, examples, 0.5)
    bad = bad_of(tmp_path, codec, examples, 0.7)
    expected = {
        "bad_short.wav": "lasts 0.90 s, shorter than a clip of 1.00 s",
        "bad_silent.wav": "silent",
        "bad_text.wav": "no audio",
        "bad_empty.wav": "empty",
        "bad_pipe.wav": "not a regular file",
        "bad_loop.wav": "cannot be opened",
        "bad_nan.wav": "NaN",
    }
    assert bad.keys() == expected.keys()
    for name, reason in bad.items():
        assert expected[name] in reason
        for text in (str(caught.value), caplog.text):
            assert name in text


@pytest.mark.parametrize("name", ["short.wav", "text.wav", "gone.wav"])
def test_a_bad_file_among_the_examples_is_refused(tmp_path: Path, codec: MelCodec, name: str) -> None:
    good = song(tmp_path / "good.wav")
    song(tmp_path / "short.wav", 0.9)
    (tmp_path / "text.wav").write_text("text")
    with pytest.raises(AudioError, match=name):
        clips(tmp_path, codec, [Example(good, tmp_path / name, "a")])
    with pytest.raises(ValueError, match="at least one, got none"):
        clips(tmp_path, codec, [])


def test_bad_files_count_as_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before the split: the held-out songs are chosen among those that can be used."""
    touch(tmp_path, *(f"pairs/{k}_{half}.wav" for k in range(4) for half in ("input", "target")))
    touch(tmp_path, *(f"songs/{k}.wav" for k in range(20)))
    train, val = find_examples(tmp_path / "pairs", skip=[tmp_path / "pairs/1_target.wav"])
    assert {e.name for e in train + val} == {"0", "2", "3"}
    assert "1_input.wav" in caplog.text
    held_out = files_of(*find_examples(tmp_path / "songs")[1])
    train, val = find_examples(tmp_path / "songs", skip=held_out)
    assert (len(train), len(val)) == (16, 2)
    assert not {*held_out} & {*files_of(*train, *val)}
    with pytest.raises(DataError, match=r"songs': none of its 20 audio files can be used"):
        find_examples(tmp_path / "songs", skip=list((tmp_path / "songs").iterdir()))


def test_the_limit_on_bad_files_is_a_share(tmp_path: Path, codec: MelCodec) -> None:
    good = [song(tmp_path / f"{k}.wav", 1.0, seed=k) for k in range(19)]
    bad = tmp_path / "bad.wav"
    bad.touch()
    examples = [Example(p, p, p.stem) for p in [*good, bad]]
    assert bad_of(tmp_path, codec, examples, 0.05) == {"bad.wav": "an empty file"}  # 1 of 20: not more than 5 %
    with pytest.raises(DataError, match=r"bad\.wav.*\n.*more than 5%.*raise --max-bad"):
        bad_of(tmp_path, codec, examples[1:], 0.05)
    with pytest.raises(ValueError, match="a share from 0 to 1, got 5"):
        bad_of(tmp_path, codec, examples, 5)


def test_files_deleted_after_listing(tmp_path: Path, codec: MelCodec) -> None:
    for k in range(3):
        song(tmp_path / f"{k}.wav")
    examples = [Example(p, p, p.stem) for p in sorted(tmp_path.iterdir())]
    (tmp_path / "1.wav").unlink()
    assert bad_of(tmp_path, codec, examples, 0.5) == {"1.wav": "no such file"}
    dataset = clips(tmp_path, codec, [examples[0], examples[2]], in_memory=False)
    (tmp_path / "0.wav").unlink()  # during the run: its latents are there already
    assert dataset[0]["input_file"] == str(tmp_path / "0.wav")


@pytest.mark.parametrize("name", [b"-rf.wav", b"two\nlines.wav", b"caf\xe9.wav"])
def test_odd_names(tmp_path: Path, codec: MelCodec, name: bytes) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    with open(path, "wb") as file:
        soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE), RATE, format="WAV")
    train, _ = find_examples(tmp_path)
    loader = DataLoader(clips(tmp_path, codec, train, in_memory=False), 1, num_workers=1)
    (batch,) = list(loader)
    assert batch["input_file"] == [str(path)]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"clips_per_example": 0}, "at least 1, got 50 and 0")],
)
def test_wrong_arguments_are_named(tmp_path: Path, codec: MelCodec, options: dict[str, object], message: str) -> None:
    song(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=message):
        clips(tmp_path, codec, **options)


def test_music_makes_clips_of_24_seconds(music: list[Path], codec: MelCodec) -> None:
    train, val = find_examples(music[0].parent)
    assert {e.input for e in train}.isdisjoint(e.input for e in val)
    dataset = ClipDataset(val, LatentCache(None, codec), clip_frames=codec.frames(24), random_crops=False)
    assert dataset[0]["input"].shape == (128, 1200)  # type: ignore[union-attr]  # a tensor
