"""The report: a run, or a shard set alone, as one self-contained HTML file."""
