"""Turns an exception into the line a person reads, and an exit code: 2 for a mistake in the request, 1 otherwise."""

from __future__ import annotations

import errno

OURS = ("nextflow_data", "nextflow_tokenize", "megatron_nextflow", "nextflow_pipelines", "nextflow_orchestration")
"""Packages whose errors already say what to do."""


def describe(error: Exception) -> tuple[str, int]:
    """(message, exit code). Errors of this project carry their advice already; others get their type named."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or error}); finished partitions are kept: free space, then run again", 1
    name = type(error).__name__
    module = type(error).__module__
    if name in ("RecipeError", "TrainingRefused"):
        return str(error), 2
    if isinstance(error, FileNotFoundError):
        return f"not found: {error.filename or error}", 2
    if module.partition(".")[0] in OURS:
        return str(error), 1
    return f"{name}: {error} (MNF_TRACEBACK=1 shows where)", 1
