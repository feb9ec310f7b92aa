"""Options mean one thing everywhere; what they must fulfil together is refused; what is saved can be read again."""

from __future__ import annotations

import dataclasses
import shlex
import typing
from pathlib import Path

import pytest
import yaml

from adaptive_window import cli, config
from adaptive_window.config import AblateConfig, ComposeConfig, TrainConfig, options
from adaptive_window.errors import UsageError

CONFIGS = {name: command[0] for name, command in cli.COMMANDS.items()}
ONE_BY_COMMAND = {"checkpoint", "codec", "data", "out", "output"}  # optional, or with a choice more, in some


def fields_of(kind: type) -> dict[str, dataclasses.Field[object]]:
    return {field.name: field for field in dataclasses.fields(kind)}


def test_an_option_has_one_bound_in_all_commands():
    hints: dict[str, dict[str, object]] = {}
    for name, kind in CONFIGS.items():
        for field, hint in typing.get_type_hints(kind).items():
            hints.setdefault(field, {})[name] = hint
    differ = {field: found for field, found in hints.items() if len(set(found.values())) > 1}
    assert set(differ) <= ONE_BY_COMMAND
    assert {"seed", "workers", "num_pairs", "clip_seconds", "max_steps"} <= {f for f in hints if len(hints[f]) > 1}


def test_every_path_is_read_or_written():
    """So that none is forgotten where files are compared: a new one is marked `reads`, or named here."""
    written = {"out", "output", "cache", "uploads"}
    for kind in CONFIGS.values():
        hints = typing.get_type_hints(kind)
        for name, field in fields_of(kind).items():
            if "Path" in str(hints[name]):
                assert bool(field.metadata.get("reads")) != (name in written), (kind, name)


@pytest.mark.parametrize("command", CONFIGS)
def test_help_shows_no_address_and_the_codec_that_is_used(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "0x" not in text
    assert "function" not in text
    if any("Path" in str(hint) for hint in typing.get_type_hints(CONFIGS[command]).values()):
        assert "type: path" in text
    if command == "demo":
        from adaptive_window import demo

        assert f"auto is {demo.PRETRAINED} where" in text


@pytest.mark.parametrize("arguments", [["--version"]])
def test_version(arguments, capsys):
    import adaptive_window

    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert adaptive_window.__version__ in capsys.readouterr().out


REFUSED = [
    ("ablate --out o --seed 99999999999999999999", "--seed: must be >= 0 and < 4294967296"),
    ("ablate --out o --workers 100000", "--workers: must be >= 0 and <= 256"),
    ("ablate --out o --num-pairs 1000000", "--num-pairs: must be > 0 and <= 256"),
    ("ablate --out o --songs 1000000000", "--songs: must be"),
    ("ablate --out o --held-out-songs 1000000000", "--held-out-songs: must be"),
    ("ablate --out o --seeds 1000000000", "--seeds: must be"),
    ("ablate --out o --seed 4294967295 --seeds 2", "go beyond the last seed"),
    ("demo --seed -1", "--seed: must be"),
    ("train --data d --out o --clips-per-song 1000000000", "--clips-per-song: must be"),
    ("train --data d --out o --clip-seconds 1e300", "--clip-seconds: must be"),
    ("train --data d --out o --decode-seconds 1e300", "--decode-seconds: must be"),
    ("compose a b -o o.wav --checkpoint c --at 1e300", "--at: must be"),
    ("plot a b -o o.png --checkpoint c --at-target 1e300", "--at-target: must be"),
    ("refine a b --at 1e300", "--at: must be"),
    ("refine a b --clip-seconds inf", "--clip-seconds: must be"),
    ("refine a b --clip-seconds 3", "--clip-seconds 3 is shorter than --window-seconds 16"),
    ("refine a b --features rhythm --move both", "--features rhythm searches the input's window only"),
    ("ablate --out o --clip-seconds 1", "shorter than --window-seconds"),
    ("ablate --out o --max-ratio 2", "longer than --clip-seconds"),
    ("ablate --out o --anneal-blur 8", "--anneal-blur blurs what matching compares: add --matching-weight"),
    ("ablate --out o --ratio-diversity-weight 1 --ratio-spread 0.3", "--ratio-spread 0.3 for 3 pairs needs ratios"),
    ("train --data d --out o --anneal-blur 8", "--anneal-blur blurs what matching compares: add --matching-weight"),
    ("demo --random-codec", "name the codec"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_bounds_and_cross_checks_hold_in_every_command(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments.split())
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_is_saved_is_absolute_and_for_every_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = TrainConfig(data=Path("songs"), out=Path("../run"), resume=True, force=True, config=(Path("c.yaml"),))
    saved = yaml.safe_load(config.to_yaml(values))
    assert saved["data"] == str(tmp_path / "songs")
    assert yaml.safe_load(config.to_yaml(dataclasses.replace(values, init=Path("default"))))["init"] == "default"
    assert saved["out"] == str(tmp_path.parent / "run")
    assert not {"resume", "force", "config"} & set(saved)
    path = tmp_path / "saved.yaml"
    path.write_text(config.to_yaml(values))
    parsed = vars(cli.build_parser().parse_args(["train", "--config", str(path)]).train)
    again = TrainConfig(**{name: value for name, value in parsed.items() if name != "config"})
    assert config.to_yaml(again) == config.to_yaml(values)


def test_what_a_command_reads():
    given = ComposeConfig(
        input=Path("a"), target=Path("b"), output=Path("o.wav"), checkpoint=Path("c"), config=(Path("d"), Path("e"))
    )
    assert set(config.reads(given)) == {Path(name) for name in "abcde"}


def test_a_command_line_gives_its_options_back():
    given = AblateConfig(out=Path("an out"), data=Path("it's"), seeds=2, clip_seconds=4.5)
    words = shlex.split(config.command_line("ablate", given, window_seconds=2.25))
    assert words[:2] == ["adaptive-window", "ablate"]
    parsed = vars(cli.build_parser().parse_args(words[1:]).ablate)
    assert parsed["out"] == Path("an out")
    assert parsed["data"] == Path("it's")
    assert (parsed["seeds"], parsed["clip_seconds"], parsed["window_seconds"]) == (2, 4.5, 2.25)


def test_inherited_takes_the_groups_help():
    field = fields_of(AblateConfig)["clip_seconds"]
    assert field.default == 6.0
    assert field.metadata["help"] == fields_of(options.ClipOptions)["clip_seconds"].metadata["help"]


def test_checks_are_those_of_the_group():
    with pytest.raises(UsageError, match="--clip-seconds 1 "):
        config.check(TrainConfig(data=Path("d"), out=Path("o"), clip_seconds=1))
    config.check(TrainConfig(data=Path("d"), out=Path("o")))
