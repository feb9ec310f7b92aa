"""The command as a user calls it, in this process."""

from adaptive_window import cli


def run(*arguments: object) -> int:
    """The exit code, whether returned or raised by the parser."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
