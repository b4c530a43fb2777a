"""Why a training ended, as a number that crosses processes, and how a process leaves it for its launcher."""

from __future__ import annotations

FAILED = 1
REFUSED = 2
"""Input or configuration that cannot be trained on, known before the first step: trying again is no use."""
DIVERGED = 3
HUNG = 4
LAUNCHER = "MEGATRON_NEXTFLOW_LAUNCHER"
"""Names, in the environment, the process on whose behalf this one runs."""
STATUS_FILE = "MEGATRON_NEXTFLOW_STATUS"
"""Names, in the environment, the file that takes the exit status of the first process to end badly."""
