"""`manifest.json`: what a reader accepts, and how it says no."""

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.shards.manifest import ManifestError, from_bytes, schedule_record, seal, to_bytes
from nextflow_tokenize.shards.reader import ShardError, ShardSet


def test_it_comes_back_and_is_sealed(sound_set: Any) -> None:
    data = (sound_set.path / "manifest.json").read_bytes()
    manifest = from_bytes(data)
    assert manifest == sound_set.manifest
    assert to_bytes(manifest) == data
    assert seal(manifest) == manifest
    assert manifest.parents == {"tokenize": "c" * 64}
    assert manifest.schedule == schedule_record()
    assert manifest.schedule.ratios == 41


def test_a_set_is_to_training_its_shards_its_tokenizers_and_its_schedule(sound_set: Any) -> None:
    manifest = sound_set.manifest
    parts = {
        "schedule": manifest.schedule.sha256,
        "shards": [shard.sha256 for shard in manifest.shards],
        "text_tokenizer": manifest.text_tokenizer.sha256,
        "vision_tokenizer": manifest.vision_tokenizer.sha256,
    }
    assert manifest.set_identity == sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()
    other_way = seal(manifest.model_copy(update={"parents": {"elsewhere": "d" * 64}, "files": (), "seed": 9}))
    assert other_way.sha256 != manifest.sha256 and other_way.set_identity == manifest.set_identity
    for change in (
        {"shards": manifest.shards[::-1]},
        {"text_tokenizer": manifest.text_tokenizer.model_copy(update={"sha256": "e" * 64})},
        {"vision_tokenizer": None},
    ):
        assert manifest.model_copy(update=change).set_identity != manifest.set_identity


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_byte_can_change_unseen(sound_set: Any, data: st.DataObject) -> None:
    raw = bytearray(to_bytes(sound_set.manifest))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ManifestError):
        from_bytes(bytes(raw))


@settings(max_examples=200, deadline=None)
@given(
    raw=st.one_of(st.binary(max_size=200), st.text(alphabet='{}[]":,0123456789eE.-truefalsn ', max_size=200).map(str.encode))
)
def test_anything_else_is_refused_and_nothing_escapes(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        from_bytes(raw)


def test_a_later_format_is_refused_by_its_number(make_set: Any) -> None:
    made = make_set()
    later = made.manifest.model_copy(update={"format_version": 2})
    (made.path / "manifest.json").write_bytes(to_bytes(seal(later)))
    with pytest.raises(ShardError, match="format version 2; this software reads version 1"):
        ShardSet.open(made.path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("shards", 0, "name"), "../shard-000000.tar", r"shards\.0\.name"),
        (("shards", 0, "samples"), -1, r"shards\.0\.samples"),
        (("shards", 0, "samples"), "4", r"shards\.0\.samples"),
        (("files", 0, "name"), "/etc/passwd", r"files\.0\.name"),
        (("budget", "max_length"), 0, r"budget\.max_length"),
        (("unknown",), 1, "unknown"),
        (("shards", 0, "name"), "shard-000001.tar", "shard 0 is missing or out of order"),
        (("seed",), 7, "changed after it was written"),
    ],
)
def test_what_breaks_the_schema_is_named(sound_set: Any, field: tuple, value: object, message: str) -> None:
    content = json.loads(to_bytes(sound_set.manifest))
    place = content
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    data = json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"
    if "out of order" in message:
        shards = (sound_set.manifest.shards[0].model_copy(update={"name": value}), *sound_set.manifest.shards[1:])
        data = to_bytes(seal(sound_set.manifest.model_copy(update={"shards": shards})))
    with pytest.raises(ManifestError, match=message):
        from_bytes(data)


def test_a_page_or_another_manifest_is_told_apart() -> None:
    for data in (b"<html>", b"[]", b"{}", b'{"format": 1, "stage": "pack"}', b"\xff\xfe"):
        with pytest.raises(ManifestError, match=r"is not valid JSON|is not the manifest of a shard set"):
            from_bytes(data)
    with pytest.raises(ManifestError, match="stands twice"):
        from_bytes(b'{"format": "megatron-nextflow-shards", "format": "megatron-nextflow-shards"}')
