"""The pack stage's own record of the audit: what its tasks counted while they wrote, so that a report reads no shard.

It answers what an audit of sound bytes answers, with an equal result. The cost is what it cannot tell: whether the bytes are
still those that were written, which only an audit of them can.
"""

from __future__ import annotations

from nextflow_data.storage.store_path import AnyPath

from nextflow_tokenize.audit.result import AuditResult
from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.shards.statistics import Statistics

AUDIT_RECORD = "audit.json"
"""Its name in the pack stage's folder, beside the set."""


def audit_record(shards: AnyPath) -> AuditResult | None:
    """The record of the set in the folder `shards` of a committed pack stage; None where an earlier version wrote none.

    Reads the set's manifest and the record, nothing else. Raises ShardError for a set that cannot be opened.
    """
    manifest = ShardSet.open(shards).manifest
    try:
        counted = Statistics.from_json((shards.parent / AUDIT_RECORD).read_bytes())
    except FileNotFoundError:
        return None
    return AuditResult(shards, statistics=counted, manifest=manifest, samples_read=counted.packs)
