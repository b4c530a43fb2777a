"""What a document is, and everything that may happen to one: sources, rules, duplicates, captions, decisions.

Importing this package loads neither Spark nor torch: each function here works on plain rows or an Arrow batch, so it can be
tested without an engine and run by any. `nextflow_pipelines` says how the work is spread.
"""
