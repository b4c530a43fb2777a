"""Trainer tests run in one process on the CPU, whose answers must be in place before anything imports megatron.core."""

from megatron_nextflow.device import setup

setup("cpu")
