"""What a command says in one line, and the code it exits with. Every error that is no bug is one of these."""

from __future__ import annotations

MENDABLE, CANNOT_GO_ON = 2, 1


class AdaptiveWindowError(Exception):
    """An error whose message is all that the user needs to see; `exit_code` is what the command line exits with.

    2 (`MENDABLE`) is for what the user can mend, 1 (`CANNOT_GO_ON`) for a run that cannot go on. Errors of a part of
    the package are defined in that part, and are a `ValueError` or a `RuntimeError` besides.
    """

    exit_code = MENDABLE


class UsageError(AdaptiveWindowError, ValueError):
    """A mistake in what a command was given."""


class RunError(AdaptiveWindowError, RuntimeError):
    """A run that cannot go on, whatever it was given."""

    exit_code = CANNOT_GO_ON
