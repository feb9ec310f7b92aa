"""A dataclass field as a command-line flag: `max_steps` is `--max-steps`, and the same name a key of a config file."""

from __future__ import annotations

import dataclasses
import os
import shlex
import typing
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser


def flag(default: Any = dataclasses.MISSING, text: str = "", **metadata: Any) -> Any:
    """A dataclass field that is a command-line flag with this help.

    Metadata that other parts know: `short`, the flag's short name; `reads`, that the command reads the file or folder
    which is named (`reads` below); `word`, a value of a path's that is no path; `once`, that it is meant for one call,
    and is not saved with a run's options.
    """
    return dataclasses.field(default=default, metadata={"help": text, **metadata})


def positional(text: str, **metadata: Any) -> Any:
    return flag(text=text, positional=True, **metadata)


def inherited(group: type, name: str, default: Any) -> Any:
    """The flag of a group with another default; its type is to be the same (a test holds it)."""
    field = next(field for field in dataclasses.fields(group) if field.name == name)
    return dataclasses.field(default=default, metadata=field.metadata)


def add_flags(parser: ArgumentParser, config: type) -> None:
    """Every field of the dataclass as an argument of `parser`; a boolean is a bare flag (`--no-...` where it is on)."""
    hints = {
        # jsonargparse reads a `Path` as YAML first, which refuses names that are no UTF-8
        name: path if hint in (Path, Path | None) else hint
        for name, hint in typing.get_type_hints(config).items()
    }
    for field in dataclasses.fields(config):
        text = field.metadata["help"]
        if field.metadata.get("config_file"):  # the parser's own
            continue
        if field.metadata.get("positional"):
            parser.add_argument(field.name, type=hints[field.name], help=text)
            continue
        names = [flag_name(field.name)]
        if "short" in field.metadata:
            names.insert(0, field.metadata["short"])
        if hints[field.name] is bool:
            if field.default:
                names = [name.replace("--", "--no-", 1) for name in names]
            action = "store_false" if field.default else "store_true"
            parser.add_argument(*names, dest=field.name, action=action, default=field.default, help=text)
        elif field.default is dataclasses.MISSING:
            parser.add_argument(*names, dest=field.name, type=hints[field.name], required=True, help=text)
        else:
            parser.add_argument(*names, dest=field.name, type=hints[field.name], default=field.default, help=text)


def flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _PathType:
    """The type of flags that name a file or folder: a callable that help and messages call `path`."""

    __name__ = "path"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(self, value: str | Path) -> Path:
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            raise ValueError(f"must be a file's or folder's name, got {value!r}")
        return Path(value)


path = _PathType()


def plain(value: Any) -> Any:
    """A flag's value as JSON, YAML and pickle can hold it: jsonargparse's restricted numbers are classes of its own."""
    if isinstance(value, Path):
        return str(value)
    return next((kind(value) for kind in (int, float) if isinstance(value, kind) and type(value) is not bool), value)


def to_plain(config: Any) -> dict[str, Any]:
    """The dataclass as JSON and YAML can hold it; without the config file that it came from."""
    fields = [field for field in dataclasses.fields(config) if not field.metadata.get("config_file")]
    return {field.name: plain(getattr(config, field.name)) for field in fields}


def to_yaml(config: Any) -> str:
    """The options as a config file for `--config`, from any folder: paths are absolute, and what is for one call is not
    in it.
    """
    saved = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not (field.metadata.get("config_file") or field.metadata.get("once")):
            file = isinstance(value, Path) and str(value) != field.metadata.get("word")
            saved[field.name] = os.path.abspath(value) if file else plain(value)
    return yaml.safe_dump(saved, sort_keys=False)


def reads(config: Any) -> list[Path]:
    """The files and folders that a command reads, by its options."""
    found: list[Path] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("reads") and value is not None:
            found += [value] if isinstance(value, Path) else value
    return found


def command_line(command: str, config: Any, **changes: Any) -> str:
    """The command, for a shell, that gives these options with `changes`; defaults are not in it."""
    words = ["adaptive-window", command]
    for field in dataclasses.fields(config):
        value = plain(changes.get(field.name, getattr(config, field.name)))
        if field.metadata.get("config_file") or (value == field.default and field.name not in changes):
            continue
        name = flag_name(field.name)
        if field.metadata.get("positional"):
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        else:
            words += [name, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
