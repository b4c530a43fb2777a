"""Documents to tokens: order, batching across documents, bad images, captions and what is learnt from."""

import copy
import hashlib
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from nextflow_data.common.sockets import UnknownPart
from nextflow_data.config import IngestConfig
from nextflow_data.document import text_node
from nextflow_data.records import Unusable
from nextflow_data.storage.errors import StoreError
from nextflow_tokenize.config.tokenize import TextTokenizerConfig, TokenizeConfig
from nextflow_tokenize.config.vision import SelfCorrectionConfig, VisionTokenizerConfig
from nextflow_tokenize.documents.encode import tokenize_documents
from nextflow_tokenize.documents.text_tokenizer import TextTokenizer, train_bpe
from nextflow_tokenize.documents.tokenized import tokenized_schema
from nextflow_tokenize.schedule import schedule_of, token_count
from nextflow_tokenize.vision.codes.quantizer import seed_of
from nextflow_tokenize.vision.images.pixels import fit, to_pixels
from nextflow_tokenize.vision.model import VisionTokenizer
from PIL import Image

FILES: dict[str, bytes] = {}


def picture(seed, size=(200, 160), format="PNG"):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format)
    return stream.getvalue()


def image_node(payload, caption=None, sha256=None):
    sha = sha256 or hashlib.sha256(payload).hexdigest()
    FILES[sha] = payload
    ref = {"uri": "pages.warc", "offset": 7, "length": len(payload)}
    return {
        "kind": "image",
        "text": None,
        "image": {"ref": ref, "address": "http://a/i.png", "sha256": sha, "caption": caption, "alt": None},
    }


def document(name, *nodes, task="interleaved"):
    source = {"address": f"http://a/{name}", "uri": "pages.warc", "offset": 0, "length": 1, "kind": "warc", "date": None}
    nodes = [text_node(node) if isinstance(node, str) else node for node in nodes]
    return {
        "doc_id": name, "source": source, "nodes": nodes, "task": task, "licence": "CC0", "consent": None, "lang": "en",
    }  # fmt: skip


def load(image):
    if image["sha256"] not in FILES:
        raise Unusable("missing-file", "pages.warc")
    payload = FILES[image["sha256"]]
    if hashlib.sha256(payload).hexdigest() != image["sha256"]:
        raise Unusable("content-changed")  # as `read_image` does
    return payload


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "t.json"
    train_bpe(["plain words of a page"] * 5, TextTokenizerConfig(vocab_size=300), path)
    return TextTokenizer.load(path)


@pytest.fixture(scope="module")
def vision():
    torch.manual_seed(0)
    config = VisionTokenizerConfig(
        levels=(128, 256), codebook_size=64, semantic_dim=4, pixel_dim=4, patch=8, channels=8, decoder_channels=8,
        channel_mult=(1, 1), semantic_channels=8,
    )  # fmt: skip
    return VisionTokenizer(config).eval()


def run(documents, text, vision, **settings):
    return list(tokenize_documents(copy.deepcopy(documents), text, vision, load, TokenizeConfig(**settings)))


SIZES = [(200, 160), (160, 200), (300, 120), (400, 300)]
DOCUMENTS = [
    document(f"d{n}", f"page {n}", *(image_node(picture(10 * n + i, SIZES[(n + i) % 4])) for i in range(n % 4)), "the end")
    for n in range(9)
]


def test_batching_changes_nothing(text, vision):
    whole = run(DOCUMENTS, text, vision)
    assert [row["doc_id"] for row, _, _ in whole] == [d["doc_id"] for d in DOCUMENTS]
    assert whole == run(DOCUMENTS, text, vision, batch_size=1)
    assert whole == run(DOCUMENTS, text, vision, batch_size=2, max_pending=3)
    alone = [run([one], text, vision)[0] for one in DOCUMENTS]
    assert whole == alone


def test_codes_are_those_of_the_resized_image(text, vision):
    payload = picture(1, (400, 300))
    (row, _, _), *_ = run([document("d", image_node(payload))], text, vision)
    segment = row["segments"][0]
    schedule = schedule_of(tuple(segment["grid"]), segment["scales"])
    assert segment["grid"] == [14, 18] and segment["scales"] == 12  # 3:4 is nearest 0.781's 56x72, a quarter of it at 256
    pixels = to_pixels([fit(Image.open(io.BytesIO(payload)).convert("RGB"), schedule[-1])])
    codes = vision.encode(pixels, schedule, [seed_of(segment["sha256"])], SelfCorrectionConfig())
    assert segment["input"] == codes.input[0].tolist()
    assert segment["target"] == codes.target[0].tolist()
    assert len(segment["input"]) == token_count(schedule)
    assert segment["input"] != segment["target"]


def test_text_captions_and_the_end(text, vision):
    nodes = ["one", "two", image_node(picture(1), "a caption"), image_node(picture(2)), "three"]
    (row, decisions, asides), *_ = run([document("d", *nodes)], text, vision)
    assert [s["kind"] for s in row["segments"]] == ["text", "image", "image", "text"]
    assert text.decode(row["segments"][0]["text"]) == "one\n\ntwo\n\na caption"
    assert row["segments"][-1]["text"] == [*text.encode("three"), text.eod_id]
    assert (decisions, asides) == ([], [])
    assert (row["doc_id"], row["address"], row["source_kind"], row["licence"]) == ("d", "http://a/d", "warc", "CC0")
    (bare, _, _), *_ = run([document("d", *nodes)], text, vision, captions=False)
    assert text.decode(bare["segments"][0]["text"]) == "one\n\ntwo"
    (ended, _, _), *_ = run([document("d", image_node(picture(2)))], text, vision)
    assert [s["kind"] for s in ended["segments"]] == ["image", "text"]
    assert ended["segments"][1]["text"] == [text.eod_id]


def test_bad_images_leave_the_document(text, vision):
    good = picture(4)
    missing = image_node(picture(5))
    del FILES[missing["image"]["sha256"]]
    cut = good[: len(good) // 2]
    nodes = [
        "before", image_node(b"no image"), image_node(good), missing, image_node(cut), image_node(good, sha256="ab" * 32),
        image_node(picture(6, (40, 40))), image_node(b""), "after",
    ]  # fmt: skip
    (row, decisions, asides), *_ = run([document("d", *nodes)], text, vision)
    assert [s["kind"] for s in row["segments"]] == ["text", "image", "text"]
    assert [(d["index"], d["action"], d["stage"]) for d in decisions] == [
        (i, "drop", "tokenize") for i in (1, 3, 4, 5, 6, 7)
    ]
    rules = [d["rule"] for d in decisions]
    assert rules[1] == "image-unreadable" and rules[3] == "image-changed" and rules[4] == "max-upscale"
    assert decisions[4]["value"] == pytest.approx(128 / 40) and decisions[4]["threshold"] == 1.5
    assert [a["reason"] for a in asides] == [rule for rule in rules if rule != "max-upscale"]
    assert all((a["uri"], a["offset"], a["address"]) == ("pages.warc", 7, "http://a/i.png") for a in asides)


@pytest.mark.parametrize("fault", [StoreError("503"), PermissionError("expired"), UnknownPart("no such source")])
def test_what_is_not_the_images_fault_ends_the_work(text, vision, fault):
    def failing(image):
        raise fault

    with pytest.raises(type(fault)):
        list(tokenize_documents([document("d", image_node(picture(1)))], text, vision, failing, TokenizeConfig()))


def test_a_bomb_is_refused_before_it_is_decoded(text, vision):
    limits = IngestConfig(max_image_pixels=1000)
    results = tokenize_documents([document("d", "x", image_node(picture(1)))], text, vision, load, TokenizeConfig(), limits)
    row, decisions, asides = next(results)
    assert [s["kind"] for s in row["segments"]] == ["text"]
    assert decisions[0]["rule"] == asides[0]["reason"] == "too-many-pixels"


def test_a_document_of_nothing_is_none(text, vision):
    empty, bad = run([document("a"), document("b", image_node(b"bad"))], text, vision)
    assert empty == (None, [], [])
    assert bad[0] is None and len(bad[1]) == len(bad[2]) == 1


def test_small_images_fall_to_a_lower_level_or_leave(text, vision):
    small = document("d", image_node(picture(1, (130, 130))))
    (row, _, _), *_ = run([small], text, vision)
    assert (row["segments"][0]["grid"], row["segments"][0]["scales"]) == ([8, 8], 8)
    (none, decisions, _), *_ = run([small], text, vision, lower_levels=())
    assert none is None and decisions[0]["value"] == pytest.approx(256 / 130)
    (enlarged, _, _), *_ = run([small], text, vision, max_upscale=2.0)
    assert enlarged["segments"][0]["scales"] == 12


def test_images_given_as_input_are_not_learnt(text, vision):
    nodes = [image_node(picture(1)), "make it red", image_node(picture(2))]

    def losses(task):
        (row, _, _), *_ = run([document("d", *nodes, task=task)], text, vision)
        return [s["loss"] for s in row["segments"]]

    assert losses("interleaved") == [True, True, True, True]
    assert losses("editing") == [False, True, True, True]
    assert losses("image-to-text") == [False, True, False, True]


def test_rows_fit_the_schema(text, vision):
    rows = [row for row, _, _ in run(DOCUMENTS, text, vision)]
    table = pa.Table.from_pylist(rows, schema=tokenized_schema(64))
    assert table.to_pylist() == rows


def test_untrained_levels_are_refused(text, vision):
    with pytest.raises(ValueError, match=r"levels \[512\] were not trained"):
        run([], text, vision, level=512)


def test_a_tokenizer_of_one_square_schedule_is_refused(text):
    config = VisionTokenizerConfig(
        levels=(), sides=(1, 2, 4), codebook_size=16, patch=8, channels=8, decoder_channels=8, channel_mult=(1, 1)
    )
    with pytest.raises(ValueError, match=r"one square schedule of sides \[1, 2, 4\]"):
        run([], text, VisionTokenizer(config).eval())


def test_without_a_vision_tokenizer_text_stays(text):
    (row, decisions, _), *_ = run([document("d", "x", image_node(picture(1)))], text, None)
    assert [s["kind"] for s in row["segments"]] == ["text"]
    assert decisions[0]["rule"] == "no-vision-tokenizer"


def test_memory_is_bounded(text, vision):
    """Documents come out before all have been read, though each grid's batch is never full."""
    read = 0

    def stream():
        nonlocal read
        for n in range(60):
            read += 1
            yield document(f"d{n}", image_node(picture(n, (160, 160))) if n % 10 == 0 else "text")

    results = tokenize_documents(stream(), text, vision, load, TokenizeConfig(batch_size=50, max_pending=2))
    next(results)
    assert read <= 11
    assert len(list(results)) == 59
