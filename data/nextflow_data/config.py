"""The recipe's sections for documents, and `Section`, the base of every section of the one configuration tree.

A misspelt key must stop a run before any work, so every section forbids unknown keys; sections are frozen, so what a stage
was fingerprinted with is what it ran with.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the recipe: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
