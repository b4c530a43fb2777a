"""What goes wrong with a store, told apart by class, so that a store's failure is never taken for a bad record.

A file that is not there is FileNotFoundError and one that may not be read is PermissionError, as on a disk. All else is a
`StoreError`. Messages name the address and never a credential.
"""

from __future__ import annotations

from nextflow_data.common.errors import RequestError


class StoreError(OSError):
    """A store did not do what was asked; the message says what, where, and what to do."""


class StoreRefused(StoreError, RequestError):
    """A store cannot do what was asked, now or later: no such bucket, a wrong secret, an address that cannot be written."""


class ChangedObject(OSError):
    """A file is no longer the one that was bound: another ETag, size or time than expected."""


class Conflict(StoreError):
    """Another file is where one was to be put."""


class ConditionalWritesMissing(RequestError):
    """A store takes no notice of If-None-Match, so two writers could both believe that they were first."""


STORE_FAULTS = (StoreError, ChangedObject, PermissionError)
"""What no reader of data may take for a bad record: a stage stops at it, and goes on from there another time."""
