"""The report: a run, or a shard set alone, as one self-contained HTML file.

`model` says what a report holds, `from_*` fill it from what stages committed, `page` writes it as HTML. `write_report` is
for a run, `write_audit_report` for a shard set.
"""

from __future__ import annotations

from nextflow_orchestration.report.write import write_audit_report, write_report

__all__ = ["write_audit_report", "write_report"]
