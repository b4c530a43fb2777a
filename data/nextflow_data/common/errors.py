"""What is a mistake in the request, told from everything else that can go wrong by class.

A program ends with 2 where what was asked for is refused: trying it again would not help. It ends with 1 where something
failed, or was found damaged. Every package's own refusals derive from `RequestError`, so whoever decides an exit status
needs none of their modules. The cost: errors of the operating system that mostly come of a wrong path (`_REFUSALS`) count
as mistakes even where a file went away in the middle of the work.
"""

from __future__ import annotations

FAILED = 1
REFUSED = 2

_REFUSALS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


class RequestError(ValueError):
    """A mistake in what was asked for; the message says what is wrong, where, and what to do."""


def exit_status(error: BaseException) -> int:
    """The status with which a program ends that `error` has stopped: REFUSED or FAILED."""
    return REFUSED if isinstance(error, (RequestError, *_REFUSALS)) else FAILED
