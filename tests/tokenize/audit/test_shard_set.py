"""The audit: silent on a sound set, never silent on a damaged one, and never stopped by it."""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_tokenize.audit.result import AuditResult
from nextflow_tokenize.audit.shard_set import audit
from nextflow_tokenize.config.pack import CostModel, PackConfig
from nextflow_tokenize.packing.sample import PackSample
from nextflow_tokenize.shards.manifest import seal, to_bytes
from nextflow_tokenize.shards.statistics import Statistics
from nextflow_tokenize.shards.tables import SHARDS_SCHEMA, to_parquet

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "shards"
COST = CostModel(hidden_size=32, ffn_hidden_size=64, layers=2, heads=2, query_groups=2, vocabulary=100)


def errors(result: AuditResult) -> list[tuple[str, str | None, str]]:
    return [(finding.shard, finding.key, finding.what) for finding in result.findings if finding.severity == "error"]


def test_a_sound_set_has_no_findings_and_true_statistics(sound_set: Any) -> None:
    steps: list[tuple[int, int]] = []
    result = audit(sound_set.path, progress=lambda *step: steps.append(step))
    assert (result.ok, result.findings) == (True, [])
    statistics, packs = result.statistics, sound_set.plan.packs
    assert statistics.packs == result.samples_read == len(packs) == sum(statistics.fill) == sum(statistics.cost_fill)
    assert statistics.slots == sum(pack.slots for pack in packs) == sum(statistics.kinds.values())
    assert statistics.cost_spread == pytest.approx(max(p.cost for p in packs) / np.mean([p.cost for p in packs]))
    segments = [s for document in sound_set.documents.values() for s in document["segments"]]
    images = [segment for segment in segments if segment["kind"] == "image"]
    assert sum(statistics.images_by_grid.values()) == statistics.images == len(images)
    assert statistics.trained == sum(len(s["text"] or s["target"]) for s in segments if s["loss"])
    assert sum(count * number for number, count in statistics.documents_per_pack.items()) == len(
        [piece for pack in packs for piece in pack.pieces]
    )
    assert statistics.documents == len(sound_set.documents)
    assert sum(tokens["images"] for tokens in statistics.tokens_by_source.values()) == len(images)
    shards = sound_set.manifest.totals.shards
    assert steps == [(done, shards) for done in range(shards + 1)]
    assert result.to_dict()["statistics"]["kinds"].keys() == {"text", "codes", "markers"}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found_and_its_file_named(small_set: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(path for path in small_set.rglob("*") if path.is_file())))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    name = file.relative_to(small_set).as_posix()
    try:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
        result = audit(small_set)
    finally:
        file.write_bytes(whole)
    assert any(finding.shard == name and finding.severity == "error" for finding in result.findings)
    # The net under the checks is not what catches damage.
    assert not any("could not be examined" in finding.what for finding in result.findings)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_lengthened_or_filled_with_noise_is_found(small_set: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(path for path in small_set.rglob("*") if path.is_file())))
    whole = file.read_bytes()
    noise = data.draw(st.binary(min_size=1, max_size=2000))
    cut = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(st.sampled_from([whole[:cut], whole + noise, whole[:cut] + noise, noise, b""]))
    try:
        file.write_bytes(changed)
        result = audit(small_set)
    finally:
        file.write_bytes(whole)
    if changed != whole:
        assert any(finding.shard == file.relative_to(small_set).as_posix() for finding in result.findings)
        assert not result.ok


def test_damage_is_named_by_sample_and_bytes_and_the_rest_is_read(make_set: Any) -> None:
    made = make_set()
    path = made.path / "shard-000001.tar"
    with tarfile.open(path) as tar:
        member = tar.getmember("000001-000002.json")
    data = bytearray(path.read_bytes())
    data[member.offset_data + 3] ^= 0xFF
    path.write_bytes(data)
    result = audit(made.path)
    (finding,) = [finding for finding in result.findings if finding.key]
    assert (finding.shard, finding.key) == ("shard-000001.tar", "000001-000002")
    assert finding.where == f"bytes {member.offset_data}–{member.offset_data + member.size}, json"
    assert result.samples_read == len(made.plan.packs) - 1
    assert "shard-000001.tar, sample 000001-000002" in str(finding)


def test_a_code_that_stays_a_code_is_named_by_its_sample(make_set: Any) -> None:
    made = make_set()
    path = made.path / "shard-000000.tar"
    with tarfile.open(path) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("target.npy") and m.size > 128)
    data = bytearray(path.read_bytes())
    data[member.offset_data + 128] ^= 1
    path.write_bytes(data)
    key = member.name.partition(".")[0]
    assert ("shard-000000.tar", key) in {(finding.shard, finding.key) for finding in audit(made.path).findings}


def test_bytes_after_the_last_sample_are_named(make_set: Any) -> None:
    made = make_set()
    path = made.path / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[-700:-698] = b"xy"
    path.write_bytes(data)
    result = audit(made.path)
    assert result.samples_read == len(made.plan.packs)
    (finding,) = [finding for finding in result.findings if finding.where]
    assert finding.where == f"bytes {len(data) - 700}–{len(data) - 698}"


def test_without_index_or_table_samples_are_found_all_the_same(make_set: Any) -> None:
    made = make_set()
    (made.path / "shard-000000.tar.idx").unlink()
    assert audit(made.path).samples_read == len(made.plan.packs)
    (made.path / "samples" / "shard-000000.parquet").unlink()
    result = audit(made.path)
    assert result.samples_read == len(made.plan.packs)
    assert {shard for shard, _, _ in errors(result)} == {"shard-000000.tar.idx", "samples/shard-000000.parquet"}


def test_files_that_are_missing_or_too_many(make_set: Any) -> None:
    made = make_set()
    (made.path / "shard-000001.tar").unlink()
    (made.path / "shard-000099.tar").write_bytes(b"")
    (made.path / "notes.txt").write_text("x")
    (made.path / ".nv-meta/index.sqlite").write_text("x")
    result = audit(made.path)
    assert {(finding.shard, finding.severity) for finding in result.findings} == {
        ("shard-000001.tar", "error"),
        ("shard-000099.tar", "error"),
        ("notes.txt", "warning"),
    }


def test_a_folder_that_is_no_set(tmp_path: Path) -> None:
    assert errors(audit(tmp_path))[0][0] == "manifest.json"
    assert errors(audit(tmp_path / "nowhere"))[0][0] == "manifest.json"
    (tmp_path / "manifest.json").write_text("{}")
    assert not audit(tmp_path).ok


def with_segments(change: Callable[[dict], dict]) -> Callable[[PackSample], PackSample]:
    """Alters the first segment of every pack."""
    return lambda pack: replace(pack, segments=(change(dict(pack.segments[0])), *pack.segments[1:]))


def text_first(key: str, value: Callable[[Any], Any]) -> Callable[[PackSample], PackSample]:
    return with_segments(lambda segment: {**segment, key: value(segment.get(key))})


def interleave(pack: PackSample) -> PackSample:
    """The last document's id on the first segment again, after others."""
    return replace(
        pack, segments=(*pack.segments, {**pack.segments[0], "tokens": 1}), text=np.append(pack.text, 1).astype(np.int32)
    )


def wrong_grid(pack: PackSample) -> PackSample:
    return replace(pack, segments=tuple({**s, "grid": [50, 50]} if s["kind"] == "image" else s for s in pack.segments))


@pytest.mark.parametrize(
    ("settings_", "file", "message"),
    [
        ({"change": lambda pack: replace(pack, cost=pack.cost + 1)}, "shard-000000.tar", "cost is stated as"),
        ({"change": text_first("tokens", lambda n: n + 1)}, "shard-000000.tar", "text ids, but the segments have"),
        ({"change": text_first("doc", lambda _: "page-1")}, "shard-000000.tar", "segments.0.text.doc"),
        ({"change": text_first("colour", lambda _: 1)}, "shard-000000.tar", "segments.0.text.colour"),
        ({"change": text_first("loss", lambda _: 1)}, "shard-000000.tar", "segments.0.text.loss"),
        ({"change": interleave}, "shard-000000.tar", "stands in two places"),
        (
            {"change": lambda pack: replace(pack, target=pack.target[:-1])},
            "shard-000000.tar",
            "target codes, but the segments",
        ),
        ({"vocabulary": 100}, "shard-000000.tar", "outside the vocabulary of 100"),
        ({"stated_codebook": 300}, "shard-000000.tar", "outside the codebook of 300"),
        ({"stated_codebook": 200}, "shard-000000.tar", "|u1"),
        (
            {
                "change": lambda pack: replace(
                    pack, pieces=tuple(p.model_copy(update={"first_slot": 9}) for p in pack.pieces)
                )
            },
            "documents/shard-000000.parquet",
            "first_slot is 9, the sample gives",
        ),
        (
            {"change": lambda pack: replace(pack, pieces=tuple(p.model_copy(update={"piece": 5}) for p in pack.pieces))},
            "documents/shard-000000.parquet",
            "piece 0 of document",
        ),
        (
            {
                "change": lambda pack: replace(
                    pack, pieces=tuple(p.model_copy(update={"doc_id": "f" * 32}) for p in pack.pieces)
                )
            },
            "documents/shard-000000.parquet",
            "it has no row with",
        ),
        (
            {"change": lambda pack: replace(pack, pieces=tuple(p.model_copy(update={"images": 77}) for p in pack.pieces))},
            "samples/shard-000000.parquet",
            "images is",
        ),
    ],
)
def test_a_writer_that_lies_is_found_though_every_hash_is_right(
    make_set: Any, settings_: dict, file: str, message: str
) -> None:
    result = audit(make_set(**settings_).path)
    assert any(finding.shard == file and message in finding.what for finding in result.findings), result.findings[:5]
    assert not any("bytes were changed" in finding.what or "could not be" in finding.what for finding in result.findings)


def test_a_grid_that_no_schedule_has_is_found(make_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer cannot count it, so it must not."""
    monkeypatch.setattr(Statistics, "add", lambda *_: None)
    made = make_set(change=wrong_grid)
    monkeypatch.undo()
    assert any("no ratio of the schedule has (50, 50)" in finding.what for finding in audit(made.path).findings)


@pytest.mark.parametrize(
    ("update", "where"),
    [
        (lambda m: {"totals": m.totals.model_copy(update={"slots": m.totals.slots + 1})}, "totals.slots"),
        (lambda m: {"totals": m.totals.model_copy(update={"documents": 1})}, "totals.documents"),
        (lambda m: {"packing": m.packing.model_copy(update={"fill": 1.0})}, "packing"),
        (lambda m: {"tokens_by_licence": {"MIT": m.tokens_by_licence["LGPL-2.1"]}}, "tokens_by_licence"),
        (lambda m: {"tokens_by_source": {}}, "tokens_by_source"),
        (lambda m: {"totals": m.totals.model_copy(update={"shards": 99})}, "totals.shards"),
        (lambda m: {"totals": m.totals.model_copy(update={"bytes": 3})}, "totals.bytes"),
        (lambda m: {"set_identity": "0" * 64}, "set_identity"),
    ],
)
def test_a_total_that_is_not_the_sum_is_found(make_set: Any, update: Callable[[Any], dict], where: str) -> None:
    made = make_set()
    (made.path / "manifest.json").write_bytes(to_bytes(seal(made.manifest.model_copy(update=update(made.manifest)))))
    result = audit(made.path)
    assert [(finding.shard, finding.where) for finding in result.findings] == [("manifest.json", where)]


def test_another_schedule_is_another_set(make_set: Any) -> None:
    made = make_set()
    other = {"schedule": made.manifest.schedule.model_copy(update={"sha256": "0" * 64})}
    (made.path / "manifest.json").write_bytes(to_bytes(seal(made.manifest.model_copy(update=other))))
    assert [finding.where for finding in audit(made.path).findings] == ["schedule", "set_identity"]


def test_a_row_of_a_shard_that_is_not_its_sum_is_found(make_set: Any) -> None:
    made = make_set()
    records = [info.record for info in made.shards]
    lying = [records[0].model_copy(update={"images": 0}), *records[1:]]
    data = to_parquet(pa.Table.from_pylist([record.model_dump() for record in lying], SHARDS_SCHEMA))
    (made.path / "shards.parquet").write_bytes(data)
    stated = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    files = tuple(f.model_copy(update=stated) if f.name == "shards.parquet" else f for f in made.manifest.files)
    (made.path / "manifest.json").write_bytes(to_bytes(seal(made.manifest.model_copy(update={"files": files}))))
    result = audit(made.path)
    assert [(finding.shard, finding.where) for finding in result.findings] == [("shards.parquet", "shards.0.images")]


def test_without_the_rows_of_shards_no_shard_is_judged(make_set: Any) -> None:
    made = make_set()
    (made.path / "shards.parquet").unlink()
    result = audit(made.path)
    assert result.samples_read == 0
    assert {finding.shard for finding in result.findings} == {"shards.parquet"}


def test_a_set_of_format_1_is_audited_as_ever() -> None:
    """The stored set, and damage to it: a copy with one byte of its last sample flipped."""
    result = audit(FORMAT_1)
    assert (result.findings, result.samples_read) == ([], 20)
    assert (result.statistics.documents, result.statistics.images) == (10, 10)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_to_a_set_of_format_1_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("old") / "set"
    shutil.copytree(FORMAT_1, copy)
    file = data.draw(st.sampled_from(sorted(path for path in copy.rglob("*") if path.is_file())))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    name = file.relative_to(copy).as_posix()
    found = audit(copy).findings
    assert any(finding.shard == name and finding.severity == "error" for finding in found)
    assert not any("could not be examined" in finding.what for finding in found)


def test_findings_of_one_file_are_capped_and_counted(make_set: Any) -> None:
    made = make_set(
        count=250, vocabulary=1, config=PackConfig(max_length=128, samples_per_shard=1000, cost=COST, split="fill")
    )
    result = audit(made.path)
    assert result.samples_read == 0
    mine = [finding for finding in result.findings if finding.shard == "shard-000000.tar"]
    assert len(mine) == 101
    assert mine[-1].what == f"{len(made.plan.packs) - 100} more findings in this file are not listed"
