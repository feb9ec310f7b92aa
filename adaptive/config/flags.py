"""A dataclass field as a command-line flag: `max_steps` is `--max-steps`, and the same name a key of a config file."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser


def flag(default: Any = dataclasses.MISSING, text: str = "", **metadata: Any) -> Any:
    """A dataclass field that is a command-line flag with this help."""
    return dataclasses.field(default=default, metadata={"help": text, **metadata})


def positional(text: str) -> Any:
    return flag(text=text, positional=True)


def add_flags(parser: ArgumentParser, config: type) -> None:
    """Every field of the dataclass as an argument of `parser`; a boolean is a bare flag (`--no-...` where it is on)."""
    hints = {
        # jsonargparse reads a `Path` as YAML first, which refuses names that are no UTF-8
        name: path if hint in (Path, Path | None) else hint
        for name, hint in typing.get_type_hints(config).items()
    }
    for field in dataclasses.fields(config):
        text = field.metadata["help"]
        if field.metadata.get("positional"):
            parser.add_argument(field.name, type=hints[field.name], help=text)
            continue
        names = [f"--{field.name.replace('_', '-')}"]
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


def path(value: str | Path) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"must be a file's or folder's name, got {value!r}")
    return Path(value)


def plain(value: Any) -> Any:
    """A flag's value as JSON, YAML and pickle can hold it: jsonargparse's restricted numbers are classes of its own."""
    if isinstance(value, Path):
        return str(value)
    return next((kind(value) for kind in (int, float) if isinstance(value, kind) and type(value) is not bool), value)


def to_plain(config: Any) -> dict[str, Any]:
    """The dataclass as JSON and YAML can hold it."""
    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}
