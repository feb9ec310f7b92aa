"""What is told wrongly is answered in one message that names it, in flags, and with exit code 2: nothing runs."""

import os
from pathlib import Path

import pytest

from adaptive_window import cli
from adaptive_window.config.bounds import seconds_of

TRAIN = ("train", "--data", "songs", "--out", "run")
COMPOSE = ("compose", "a.wav", "b.wav", "--checkpoint", "c.safetensors", "-o", "o.wav")


def message_of(arguments, capsys: pytest.CaptureFixture[str]) -> str:
    """The message, after checking that it is all that was printed."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("adaptive-window")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected \"command\" to be one of {demo,encode,train"),
        (("trian",), "unknown command trian (did you mean train?)"),
        (("--verion",), "unknown argument --verion"),
        ((*TRAIN, "--max-stepz", 3), "(did you mean --max-steps?)"),
        ((*TRAIN, "--max-step=3"), "(did you mean --max-steps?)"),
        ((*TRAIN, "--resum"), "(did you mean --resume?)"),
        ((*TRAIN, "--quux"), "unknown argument --quux;"),
        ((*TRAIN, "more"), "unknown argument more;"),
        ((*TRAIN, "--learning-rate"), "--learning-rate: expected one argument"),
        (("train", "--out", "run"), "missing --data;"),
        (("compose", "a.wav", "b.wav"), "missing --output"),
        ((*TRAIN, "--learning-rate", -1), "--learning-rate: must be > 0.0 and < inf, got -1"),
        ((*TRAIN, "--learning-rate", "nan"), "--learning-rate: must be > 0.0 and < inf, got nan"),
        ((*TRAIN, "--learning-rate", "inf"), "--learning-rate: must be > 0.0 and < inf, got inf"),
        ((*TRAIN, "--learning-rate", "fast"), "--learning-rate: must be a number, got 'fast'"),
        ((*TRAIN, "--novelty-weight", "inf"), "--novelty-weight: must be >= 0.0 and < inf, got inf"),
        ((*TRAIN, "--max-steps", 0), "--max-steps: must be > 0, got 0"),
        ((*TRAIN, "--max-steps", 1.5), "--max-steps: must be a whole number, got '1.5'"),
        ((*TRAIN, "--batch-size", -4), "--batch-size: must be > 0, got -4"),
        ((*TRAIN, "--num-pairs", 10**9), "--num-pairs: must be > 0 and <= 256, got 1000000000"),
        ((*TRAIN, "--workers", 10**6), "--workers: must be >= 0 and <= 256, got 1000000"),
        ((*TRAIN, "--seed", 2**32), "--seed: must be >= 0 and < 4294967296"),
        ((*TRAIN, "--max-ratio", 0.5), "--max-ratio: must be >= 1.0 and < inf, got 0.5"),
        ((*TRAIN, "--max-bad", 5), "--max-bad: must be >= 0 and <= 1, got 5"),
        ((*TRAIN, "--clip-seconds", 0), "--clip-seconds: must be > 0.0"),
        ((*TRAIN, "--codec", "mp3"), "--codec: must be one of 'mel', 'encodec-24khz', 'encodec-32khz'; got mp3"),
        ((*TRAIN, "--cache", ""), "--cache: invalid path value: ''"),
        ((*COMPOSE, "--at", -1), "--at: must be from 0 to"),
        ((*COMPOSE, "--device", "tpu"), "--device: must be one of 'auto', 'cpu', 'cuda'; got tpu"),
    ],
)  # fmt: skip
def test_the_mistake_is_named(arguments, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = message_of(arguments, capsys)
    assert said in message
    assert "--help" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"max_stepz: 3\n", "unknown key max_stepz (did you mean max_steps?)"),
        (b"quux: 3\n", "unknown key quux;"),
        (b"max-steps: 3\n", "unknown key max-steps (did you mean max_steps?)"),
        (b"3: 4\n", "unknown key 3;"),
        (b"- max_steps\n- 3\n", "must hold lines `key: value`, got list"),
        (b"max_steps\n", "must hold lines `key: value`, got str"),
        (b"", "must hold lines `key: value`, got NoneType"),
        (b"data: [\n", "not YAML"),
        (b"data: \xff\xfe\n", "not a text file in UTF-8"),
        (b"RIFF\x00\x00WAVE", "not YAML"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_config_that_is_none_is_named(
    tmp_path: Path, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    message = message_of((*TRAIN, "--config", path), capsys)
    assert said in message
    assert str(path) in message


def test_a_folder_is_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read (Is a directory)" in message_of((*TRAIN, "--config", tmp_path), capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_steps: 0", "--max-steps: must be > 0, got 0"),
        ("max_steps: many", "--max-steps: must be a whole number, got 'many'"),
        ("learning_rate: .nan", "--learning-rate: must be > 0.0 and < inf, got nan"),
        ("codec: mp3", "--codec: must be one of"),
        ("cache: [a, b]", "--cache: must be a file's or folder's name, got ['a', 'b']"),
        ("weights: 3", "--weights: must be a file's or folder's name, got 3"),
        ("resume: perhaps", "resume must be true or false, got 'perhaps'"),
        ("tensorboard: 'no'", "tensorboard must be true or false, got 'no'"),
    ],
)
def test_values_in_a_config_are_checked(
    tmp_path: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: songs\nout: run\n{line}\n")
    assert said in message_of(("train", "--config", path), capsys)


def test_a_flag_wins_over_the_config(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: songs\nout: run\nmax_steps: 3\nlearning_rate: 1e-3\n")
    parsed = cli.build_parser().parse_args(["train", "--config", str(path), "--max-steps", "5"])
    assert (parsed.train.max_steps, parsed.train.learning_rate) == (5, 1e-3)


def test_names_that_are_no_text_are_taken() -> None:
    name = os.fsdecode(b"caf\xe9: [1, 2].wav")
    parsed = cli.build_parser().parse_args(["plot", name, "b", "--checkpoint", name, "-o", "2024"])
    assert (parsed.plot.input, parsed.plot.checkpoint, parsed.plot.output) == (Path(name), Path(name), Path("2024"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0), ("90s", 90.0), ("1:30", 90.0), ("0:01:30", 90.0), ("01:30", 90.0), ("1m30s", 90.0),
        ("1:30.5", 90.5), ("90:00", 5400.0), ("2h", 7200.0), ("1h2m3.5s", 3723.5), ("1 min 30 s", 90.0), (".5", 0.5),
        (0, 0.0), (12.25, 12.25), ("1e2", 100.0),
    ],
)  # fmt: skip
def test_places_in_a_song(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "abc", "1:75", "1:60:00", ":30", "1:2:3:4", "-3", "1:-5", "nan", "inf", "1e9", True]
)
def test_what_is_no_place_in_a_song(text):
    with pytest.raises(ValueError, match=r"must be|60 seconds or minutes"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["1:75", "abc", "-3", "2000000"])
def test_a_bad_place_is_answered_in_its_own_words(text, capsys):
    message = message_of(("refine", "a.wav", "b.wav", f"--at={text}"), capsys)
    assert "--at: " in message
    assert repr(text) in message
    assert "Place" not in message
