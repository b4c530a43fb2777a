"""`manifest.json`: what a reader accepts, and how it says no."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.config.pack import CostModel, PackConfig
from nextflow_tokenize.shards.manifest import from_bytes, seal, to_bytes
from nextflow_tokenize.shards.reader import ShardError, ShardSet
from nextflow_tokenize.shards.records import ManifestError, identity_of, schedule_record


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
    hashes = [sha256((sound_set.path / info.record.name).read_bytes()).hexdigest() for info in sound_set.shards]
    parts = {
        "schedule": manifest.schedule.sha256,
        "shards": hashes,
        "text_tokenizer": manifest.text_tokenizer.sha256,
        "vision_tokenizer": manifest.vision_tokenizer.sha256,
    }
    assert manifest.set_identity == sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()
    text, vision, schedule = manifest.text_tokenizer, manifest.vision_tokenizer, manifest.schedule
    assert identity_of(hashes, text, vision, schedule) == manifest.set_identity
    others = (
        identity_of(hashes[::-1], text, vision, schedule),
        identity_of(hashes, text.model_copy(update={"sha256": "e" * 64}), vision, schedule),
        identity_of(hashes, text, None, schedule),
    )
    assert manifest.set_identity not in others


def test_the_manifest_does_not_grow_with_the_set(make_set: Any) -> None:
    """Ten times the documents, and a shard a pack: only numbers get longer. Thousands of licences are a hundred and
    others."""
    small, large = make_set(count=20, name="small"), make_set(count=200, name="large", config=one_a_shard())
    assert len(large.shards) > 40 * len(small.shards) // 3
    sizes = [len(to_bytes(made.manifest)) for made in (small, large)]
    assert sizes[1] < sizes[0] + 200


def one_a_shard() -> PackConfig:
    cost = CostModel(hidden_size=32, ffn_hidden_size=64, layers=2, heads=2, query_groups=2, vocabulary=1000)
    return PackConfig(max_length=400, samples_per_shard=1, cost=cost)


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
    later = made.manifest.model_copy(update={"format_version": 3})
    (made.path / "manifest.json").write_bytes(to_bytes(seal(later)))
    with pytest.raises(ShardError, match="format version 3; this software reads versions 1 to 2"):
        ShardSet.open(made.path)


FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "shards" / "manifest.json"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("totals", "shards"), -1, r"totals\.shards"),
        (("totals", "samples"), "4", r"totals\.samples"),
        (("files", 0, "name"), "/etc/passwd", r"files\.0\.name"),
        (("files", -1, "name"), ".nv-meta/split.yaml", r"shards\.parquet is not"),
        (("budget", "max_length"), 0, r"budget\.max_length"),
        (("unknown",), 1, "unknown"),
        (("seed",), 7, "changed after it was written"),
    ],
)
def test_what_breaks_the_schema_is_named(sound_set: Any, field: tuple, value: object, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        from_bytes(changed(to_bytes(sound_set.manifest), field, value))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("shards", 0, "name"), "../shard-000000.tar", r"shards\.0\.name"),
        (("shards", 0, "samples"), -1, r"shards\.0\.samples"),
        (("shards", 0, "samples"), "4", r"shards\.0\.samples"),
        (("files", 0, "name"), "/etc/passwd", r"files\.0\.name"),
        (("seed",), 7, "changed after it was written"),
    ],
)
def test_what_breaks_the_schema_of_format_1_is_named(field: tuple, value: object, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        from_bytes(changed(FORMAT_1.read_bytes(), field, value))


def test_format_1_is_read_as_this_one() -> None:
    old = json.loads(FORMAT_1.read_bytes())
    found = from_bytes(FORMAT_1.read_bytes())
    assert (found.format_version, found.sha256) == (1, old["sha256"])
    assert (found.totals.shards, found.totals.groups) == (len(old["shards"]), 1)
    assert found.totals.samples == old["totals"]["samples"]
    parts = {name: old[name]["sha256"] for name in ("schedule", "text_tokenizer", "vision_tokenizer")}
    parts["shards"] = [shard["sha256"] for shard in old["shards"]]
    text = json.dumps(parts, separators=(",", ":"), sort_keys=True)
    assert found.set_identity == sha256(text.encode()).hexdigest()


def changed(data: bytes, field: tuple, value: object) -> bytes:
    content = json.loads(data)
    place = content
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"


def test_a_page_or_another_manifest_is_told_apart() -> None:
    for data in (b"<html>", b"[]", b"{}", b'{"format": 1, "stage": "pack"}', b"\xff\xfe"):
        with pytest.raises(ManifestError, match=r"is not valid JSON|is not the manifest of a shard set"):
            from_bytes(data)
    with pytest.raises(ManifestError, match="stands twice"):
        from_bytes(b'{"format": "megatron-nextflow-shards", "format": "megatron-nextflow-shards"}')
