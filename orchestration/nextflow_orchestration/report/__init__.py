"""The report: a run, a training, or a shard set alone, as one self-contained HTML file.

`model` says what a report holds, `from_*` fill it from what stages committed, `page` writes it as HTML.
"""
