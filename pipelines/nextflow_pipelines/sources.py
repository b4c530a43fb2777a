"""Source files by content: how a reference stays true on another machine.

A document's references name `sources/<first 16 digits of the file's sha256>-<its name>`, relative to the run's root, where a
symbolic link leads to the real file. So nothing that is hashed holds an absolute path, a file that moved is found again by
running once more, and a file that changed under its name is another source. The cost: a reader needs the root to open a
reference (`local_ref`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nextflow_data.config import IngestConfig
from nextflow_data.document import Image, Ref
from nextflow_data.whole_files import file_sha256

SOURCES = "sources"


@dataclass(frozen=True)
class SourceFile:
    """An input file: its name in references, and the sha256 of its content."""

    uri: str
    sha256: str


def bind_sources(root: Path, paths: Sequence[Path], link_them: bool = True) -> list[SourceFile]:
    """Hashes the input files and links them under the root; a file given twice counts once, the order is kept.

    Without `link_them` nothing is written. Raises FileNotFoundError, naming the file, before anything is written.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(2, "input file not found", str(path))
    found: dict[str, SourceFile] = {}
    for path in paths:
        digest = file_sha256(path)
        if digest in found:
            continue
        uri = f"{SOURCES}/{digest[:16]}-{path.name}"
        found[digest] = SourceFile(uri, digest)
        if not link_them:
            continue
        link = root / uri
        link.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()
        if link.is_symlink() and link.resolve() == target:
            continue
        new = link.with_name(f".{link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    return list(found.values())


def local_ref(root: Path, ref: Ref) -> Ref:
    """A stored reference as one that can be opened here; addresses with a scheme are left as they are."""
    uri = ref["uri"]
    return {**ref, "uri": uri if "://" in uri else str(root / uri)}


def image_loader(root: Path, config: IngestConfig) -> Callable[[Image], bytes]:
    """A function that gives an image node's encoded bytes. It raises `nextflow_data.warc.records.RecordError`."""
    from nextflow_data.pages.assemble import image_bytes

    def load(image: Image) -> bytes:
        return image_bytes({**image, "ref": local_ref(root, image["ref"])}, config)

    return load
