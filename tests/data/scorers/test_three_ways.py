"""One scorer in this process, in a pool and on a server: the same answers to the bit, the same failures to the word."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nextflow_data.scorers.config import ScorerConfig, ScoringConfig
from nextflow_data.scorers.protocol import Answer, Question, failure
from nextflow_data.scorers.scoring import open_scoring, open_way, weighted_sum
from PIL import Image

Serve = Callable[..., tuple[subprocess.Popen[str], str]]
SETTINGS = {"threshold": 12}


def _file(seed: int, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC).save(out, kind, **how)
    return out.getvalue()


def _bomb() -> bytes:
    """30 bytes of a header that claims 50,000×50,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = b"IDAT"
    parts = b"".join(struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data))
    return b"\x89PNG\r\n\x1a\n" + parts


def _requests() -> list[Question]:
    pairs = [Question(_file(seed, "JPEG", quality=60), reference=_file(seed, "PNG")) for seed in range(3)]
    others = [Question(_file(1, "WEBP"), reference=_file(2, "JPEG"), text="ünicode", extra={"a": [1, {"b": None}]})]
    bad = [Question(_bomb(), reference=_file(0, "PNG")), Question(b"GIF87a"), Question(b"<svg/>"), Question(b""), Question()]
    return [*pairs, *others, *bad, Question(b"\xff\xd8\xff" + bytes(20_000)), Question(text="x" * (1 << 22))]


def test_the_same_three_ways(serve: Serve) -> None:
    _, address = serve("changed_share", "--settings", '{"threshold": 12}', "--port", "0", "--max-image-bytes", "20000")
    found: dict[str, list[Answer]] = {}
    for way, more in (("process", {}), ("pool", {"workers": 1}), ("server", {"servers": (address,)})):
        one = ScorerConfig(scorer="changed_share", settings=SETTINGS, way=way, max_image_bytes=20_000, **more)
        opened = open_way(one)
        found[way] = [opened.ask(request) for request in _requests()]
        opened.close()
    assert found["pool"] == found["process"] and found["server"] == found["process"]
    here = found["process"]
    assert all(answer.failed is None for answer in here[:4])
    assert len({answer.score for answer in here[:4]}) == 4 and here[3].score is not None and here[3].score > 0.5
    told = [(answer.failed, answer.why) for answer in here[4:]]
    assert [reason for reason, _ in told] == ["bad-input"] * 4 + ["raised"] + ["bad-input"] * 2
    assert "2500000000 pixels" in told[0][1] and "damaged image/gif" in told[1][1] and "no image" in told[2][1]
    assert "20003 bytes" in told[5][1] and "texts" in told[6][1]


def test_an_async_scorer_of_ones_own_three_ways(serve: Serve, files: Path) -> None:
    """In this process and on a server of one process it is asked for several at once, and each answer waits for all four."""
    judge = str(files / "judge.py")
    _, address = serve(judge, "--port", "0", "--workers", "0")
    texts = ["a", "bb", "ccc", "dddd"]
    for way, together, more in (("process", 4, {}), ("server", 4, {"servers": (address,)}), ("pool", 1, {})):
        config = ScoringConfig(scorers={"judge": ScorerConfig(scorer=judge, version="7", weight=0.5, way=way, **more)})
        with open_scoring(config) as scoring:
            asked = [Question(text=text, reference="a text", extra={"together": together}) for text in texts]
            answers = list(scoring.score_all(asked))
        assert [answer.score for answer in answers] == [0.5, 1.0, 1.5, 2.0]
        assert answers[1].values == {"score": 1.0, "parts": {"judge": {"score": 2.0, "said": "bb and a text"}}}


def test_several_scorers_and_their_weights(files: Path) -> None:
    pair = Question(_file(0, "JPEG"), reference=_file(1, "PNG"), extra={"do": "raise"})
    own = {
        "sharp": ScorerConfig(scorer="sharpness", weight=0.001),
        "changed": ScorerConfig(scorer="changed_share", weight=-2),
    }
    faulty = {"faulty": ScorerConfig(scorer=str(files / "faulty.py"))}
    with open_scoring(ScoringConfig(scorers={**own, **faulty}, missing="leave-out")) as scoring:
        (answer,) = scoring.score_all([pair])
        assert scoring.asked["faulty"].counts == {"asked": 1, "raised": 1}
    assert answer.values is not None
    parts = answer.values["parts"]
    assert parts["faulty"] == {"failed": "raised", "why": "RuntimeError: no luck"}
    present = 0.001 * parts["sharp"]["score"] - 2 * parts["changed"]["score"]
    assert answer.score == pytest.approx(present * 3.001 / 2.001)


def test_weighted_sums() -> None:
    scorers = {name: ScorerConfig(scorer=name, weight=weight) for name, weight in (("a", 2.0), ("b", -1.0), ("c", 0.0))}
    good = {"a": Answer({"score": 3.0}), "b": Answer({"score": 0.5}), "c": Answer({"score": 9.0})}
    late = failure("timed-out", "60 s")
    strict, lenient = (ScoringConfig(scorers=scorers, missing=missing) for missing in ("fail", "leave-out"))
    assert weighted_sum(good, strict).score == weighted_sum(good, lenient).score == 5.5
    assert weighted_sum({**good, "b": late}, strict) == failure("timed-out", "b: 60 s")
    assert weighted_sum({**good, "b": late}, lenient).score == 6.0 * 3 / 2
    assert weighted_sum({**good, "a": late, "b": late}, lenient).failed == "timed-out", "nothing that counts is left"
