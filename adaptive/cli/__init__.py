"""`adaptive-window`: demo, encode, train, compose, refine, plot, ablate, serve.

What the user can mend ends with a message that names it and exit code 2, a run that cannot go on with 1; anything else
that goes wrong keeps its traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import add_flags, check, plain
from .commands import COMMANDS
from .parser import CommandParser, ConfigFile


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="adaptive-window",
        description="Learns which windows of two songs to compose new patterns from.",
        allow_abbrev=False,
        version=__version__,
    )
    commands = parser.add_subcommands(dest="command", required=True)
    for name, (config, _, text) in COMMANDS.items():
        command = CommandParser(description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        command.add_argument("--config", action=ConfigFile, help="YAML file of any of these options")
        add_flags(command, config)
        commands.add_subcommand(name, command, help=text)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text that the terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    parsed = build_parser().parse_args(arguments)
    config, run, _ = COMMANDS[parsed.command]
    given = dict(vars(parsed[parsed.command]))
    files = tuple(Path(os.fspath(file)) for file in given.pop("config") or ())
    values: dict[str, Any] = {k: v if isinstance(v, Path) else plain(v) for k, v in given.items()}
    try:
        check(options := config(config=files, **values))
        run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from .failures import explain

        if (found := explain(error, values.get("batch_size"))) is None:
            raise
        message, code = found
        print(f"adaptive-window {parsed.command}: error: {message}", file=sys.stderr)
        return code
    return 0
