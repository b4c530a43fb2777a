"""Turns an exception into the line a person reads; `nextflow_data.common.errors` says with which status `mnf` then ends."""

from __future__ import annotations

import errno

from nextflow_data.common.errors import RequestError, exit_status

OURS = ("nextflow_data", "nextflow_tokenize", "megatron_nextflow", "nextflow_pipelines", "nextflow_orchestration")
"""Packages whose errors already say what to do."""
_PATHS = {
    FileNotFoundError: "not found",
    FileExistsError: "is there already",
    NotADirectoryError: "not a folder",
    IsADirectoryError: "a folder, where a file is wanted",
    PermissionError: "not permitted",
}


def describe(error: Exception) -> tuple[str, int]:
    """(message, exit status). Errors of this project carry their advice already; others get their type named."""
    status = exit_status(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"the disk is full ({error.filename or error}); finished partitions are kept: free space, then run again",
            status,
        )
    if isinstance(error, RequestError) or type(error).__module__.partition(".")[0] in OURS:
        return str(error), status
    for kind, words in _PATHS.items():
        if isinstance(error, kind):
            name = error.filename2 or error.filename  # of a rename, the place that was wanted
            return (f"{words}: {name}" if name else str(error)), status
    return f"{type(error).__name__}: {error} (MNF_TRACEBACK=1 shows where)", status
