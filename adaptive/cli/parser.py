"""The command line's parser: what it is told wrongly it answers in one message, with the nearest name there is."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

_UNRECOGNIZED = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
_REQUIRED = re.compile(r"the following arguments are required: (.*)")
_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")
_KEY = re.compile(r'Parser key "(\w+)":\s*')
# of an option that may be left out, jsonargparse names all types that it may have
_OPTIONAL = r"Does not validate against any of the Union .*? Errors: - "
_BOUND = r"Not of type \w+: does not conform to restriction (.*?)"
_REWORDED = [
    (re.compile(rf"{_OPTIONAL}{_BOUND} - Expected .* Given value: (.*)"), r"must be \1, got \2"),
    (re.compile(rf"{_OPTIONAL}(.*?) - Expected .*"), r"\1"),
    (re.compile(r"Not of type Place: "), ""),
    (re.compile(r"Not of type \w+: (\S+) does not conform to restriction (.*)"), r"must be \2, got \1"),
    (re.compile(r"Not of type \w+: invalid literal for int\(\) .*: (.*)"), r"must be a whole number, got \1"),
    (re.compile(r"Not of type \w+: could not convert string to float: (.*)"), r"must be a number, got \1"),
    (re.compile(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)"), r"must be one of \1; got \2"),
    (re.compile(r"\bv([<>]=?)"), r"\1 "),
]


class CommandParser(ArgumentParser):
    """An `ArgumentParser` whose errors are one message without the usage, in terms of flags, with a suggestion."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message to stderr and exits with code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        print(f"{command}: error: {_in_flags(parser, message)}; {command} --help lists what there is", file=sys.stderr)
        sys.exit(2)


class ConfigFile(ActionConfigFile):
    """`--config FILE`: refuses, naming the file, what is no YAML mapping of the parser's own keys."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        check_config_file(parser, Path(values))
        super().__call__(parser, cfg, values, option_string)


def check_config_file(parser: CommandParser, path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {path}: cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        parser.error(f"--config {path}: not a text file in UTF-8")
    except yaml.YAMLError as error:
        parser.error(f"--config {path}: not YAML ({' '.join(str(error).split())})")
    if not isinstance(content, dict):
        parser.error(f"--config {path}: must hold lines `key: value`, got {type(content).__name__}")
    keys = [action.dest for action in parser._actions if action.dest not in ("help", "config", "print_config")]
    if unknown := [str(key) for key in content if key not in keys]:
        named = ", ".join(f"{key}{_suggestion(key, keys)}" for key in unknown)
        parser.error(f"--config {path}: unknown key {named}")
    for action in parser._actions:  # a bare flag has no type that would be checked: any text would count as true
        value = content.get(action.dest, False)
        if action.nargs == 0 and action.dest in keys and not isinstance(value, bool):
            parser.error(f"--config {path}: {action.dest} must be true or false, got {value!r}")


def _in_flags(parser: ArgumentParser, message: str) -> str:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    if found := _UNRECOGNIZED.search(message):
        given = found[1].split(" ")
        unknown = [word.partition("=")[0] for word in given if word.startswith("-")]
        hints = "".join(_suggestion(word, flags) for word in unknown)
        return f"unknown argument{'s' if len(given) > 1 else ''} {' '.join(given)}{hints}"
    if found := _REQUIRED.search(message):
        named = [_flag_of(parser, name.rpartition(".")[2]) for name in found[1].split(", ")]
        return f"missing {', '.join(named)}"
    if found := _CHOICE.search(message):
        names = re.findall(r"[\w-]+", found[2])
        return f"unknown command {found[1]}{_suggestion(found[1], names)} (there are {', '.join(names)})"
    message = _KEY.sub(lambda match: f"{_flag_of(parser, match[1])}: ", message)
    message = " ".join(message.split())
    for pattern, words in _REWORDED:
        message = pattern.sub(words, message)
    return message


def _flag_of(parser: ArgumentParser, name: str) -> str:
    """`--max-steps` for `max_steps`; a positional argument's name as it is."""
    commands = getattr(parser._subcommands_action, "_name_parser_map", {}).values()
    for action in (action for each in (parser, *commands) for action in each._actions):
        if action.dest == name:
            return str(next((flag for flag in action.option_strings if flag.startswith("--")), name))
    return name


def _suggestion(word: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, list(names), n=1, cutoff=0.7)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
