"""Answers on disk: one for each content, put if absent, read ever after.

A model's answer is no function of its inputs, so what was said first stands: whoever asks later, here or in another process,
reads that. One file for each scorer's identity, `NAME-IDENTITY/answers.jsonl`, a line an answer:

    {"answer": {…}, "content": "hex sha256 of what was asked", "crc": crc32 of the JSON of [content, answer]}

beside `scorer.json`, which says in words whose answers they are. Lines are only ever appended, under a lock of the whole
file (flock, which a kill frees at once), after what others wrote meanwhile was read; so the folder must be on a disk where
flock works, for all who write there. A line that is damaged or was cut off by a kill is counted, and its content asked
anew. Failed answers are not recorded: they tell of a moment, and the next run asks again.

The cost: some 150 bytes of memory an answer, for where its line lies. Lines are on the disk after `sync`; a power failure
before it, not a kill, can lose some.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from nextflow_data.common.whole_files import replace_file
from nextflow_data.scorers.protocol import MAX_ANSWER_BYTES, canonical

ANSWERS, SCORER = "answers.jsonl", "scorer.json"
_LENGTH_BITS = 24
assert MAX_ANSWER_BYTES + 256 < 1 << _LENGTH_BITS


class Recorded:
    """One scorer's recorded answers; for several threads, beside other processes. Raises OSError."""

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        name = re.sub(r"[^\w.-]", "_", str(description["scorer"]))[:64].lstrip(".")
        self.folder = folder / f"{name}-{sha256(str(description['identity']).encode()).hexdigest()[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.damaged = 0
        self._places: dict[bytes, int] = {}
        self._read_to = 0
        self._lock = threading.Lock()
        self._file = os.open(self.folder / ANSWERS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if not (self.folder / SCORER).exists():
            replace_file(self.folder / SCORER, json.dumps(description, indent=1, sort_keys=True) + "\n")
        with self._alone():
            self._read_on()

    def get(self, content: str) -> dict[str, Any] | None:
        """The answer that stands for a content; None: there is none yet."""
        with self._lock:
            standing = self._standing(content)
            if standing is None:
                with self._alone():
                    self._read_on()
                standing = self._standing(content)
            return standing

    def put(self, content: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The answer that stands: this one, or another that was recorded before it."""
        with self._lock, self._alone():
            self._read_on()
            standing = self._standing(content)
            if standing is not None:
                return standing
            crc = zlib.crc32(canonical([content, answer]).encode())
            line = canonical({"answer": answer, "content": content, "crc": crc}).encode() + b"\n"
            place = os.fstat(self._file).st_size
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"{self.folder / ANSWERS}: {written} of {len(line)} bytes could be written; is the disk full?")
            self._note(content, place, len(line))
            self._read_to = place + len(line)
            return json.loads(line)["answer"]

    def sync(self) -> None:
        """Have on the disk what was put."""
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._file)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read_on(self) -> None:
        """Note what was appended since; mend an end that a kill left without its newline. Under the file's lock."""
        if os.fstat(self._file).st_size == self._read_to:
            return
        with open(self.folder / ANSWERS, "rb") as lines:
            lines.seek(self._read_to)
            for line in lines:
                content = _content(line)
                if content is None:
                    self.damaged += 1
                else:
                    self._note(content, self._read_to, len(line))
                self._read_to += len(line)
                if not line.endswith(b"\n"):
                    self._read_to += os.write(self._file, b"\n")
                    break

    def _note(self, content: str, place: int, length: int) -> None:
        self._places.setdefault(bytes.fromhex(content), place << _LENGTH_BITS | length)

    def _standing(self, content: str) -> dict[str, Any] | None:
        place = self._places.get(bytes.fromhex(content))
        if place is None:
            return None
        line = os.pread(self._file, place & (1 << _LENGTH_BITS) - 1, place >> _LENGTH_BITS)
        if _content(line) == content:
            return json.loads(line)["answer"]
        self.damaged += 1  # since it was noted
        del self._places[bytes.fromhex(content)]
        return None


def _content(line: bytes) -> str | None:
    """The content that a whole line is about; None: it is damaged."""
    try:
        entry = json.loads(line)
        whole = zlib.crc32(canonical([entry["content"], entry["answer"]]).encode()) == entry["crc"]
        return entry["content"] if whole and len(bytes.fromhex(entry["content"])) == 32 and line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
