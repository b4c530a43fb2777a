"""What the stages are called, in folders, decisions and messages. Their order is that of `nextflow_pipelines.registry`."""

from __future__ import annotations

INGEST = "ingest"
FILTER = "filter"
DEDUP = "dedup"
CAPTION = "caption"
VISION_TOKENIZER = "vision_tokenizer"
TEXT_TOKENIZER = "text_tokenizer"
TOKENIZE = "tokenize"
PACK = "pack"
