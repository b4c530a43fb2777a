"""Documents become tokens here: scales, the vision tokenizer, text ids, packing, the shard format and its audit.

Importing this package loads no torch; only `nextflow_tokenize.vision` does.
"""
