"""The shard set: what is written is what is read, byte for byte the same each time, and by other readers too."""

import json
import pickle
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
import yaml
from nextflow_data.storage.files import put
from nextflow_data.storage.store_path import StorePath
from nextflow_tokenize.audit.shard_set import audit
from nextflow_tokenize.packing.sample import build_pack
from nextflow_tokenize.shards.manifest import seal, to_bytes
from nextflow_tokenize.shards.reader import ShardError, ShardSet
from nextflow_tokenize.shards.records import TextTokenizerRecord
from nextflow_tokenize.shards.writer import ShardInfo, write_manifest, write_shard


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_pack_comes_back_as_it_was(sound_set: Any) -> None:
    shards = ShardSet.open(sound_set.path, verify="full")
    assert len(shards) == len(sound_set.plan.packs) > 8
    for number, pack in enumerate(sound_set.plan.packs):
        expected, found = build_pack(pack, sound_set.documents), shards.read(number)
        assert found.segments == expected.segments
        assert found.cost == expected.cost == pack.cost
        assert found.slots == pack.slots
        for name, dtype in (("text", "<i4"), ("input", "<u2"), ("target", "<u2")):
            array = getattr(found, name)
            assert array.dtype == np.dtype(dtype)
            assert array.flags.writeable
            np.testing.assert_array_equal(array, getattr(expected, name))


def test_a_document_comes_back_whole(sound_set: Any) -> None:
    """Through `documents.parquet`, piece by piece: exactly the ids and codes that were tokenised."""
    shards = ShardSet.open(sound_set.path)
    numbers = {shards.key(number): number for number in range(len(shards))}
    for doc_id, document in sound_set.documents.items():
        text: list[int] = []
        codes: dict[str, list[int]] = {"input": [], "target": []}
        rows = shards.pieces_of(doc_id)
        assert [row["piece"] for row in rows] == list(range(len(rows)))
        assert {row["licence"] for row in rows} == {document["licence"]}
        for row in rows:
            sample = shards.read(numbers[row["key"]])
            first, last = row["first_segment"], row["last_segment"]
            assert {segment["doc"] for segment in sample.segments[first:last]} == {doc_id}
            before, mine = sample.segments[:first], sample.segments[first:last]
            skipped = sum(s["tokens"] for s in before if s["kind"] == "text")
            tokens = sum(s["tokens"] for s in mine if s["kind"] == "text")
            text += sample.text[skipped : skipped + tokens].tolist()
            skipped = row["first_slot"] - skipped - sum(s["kind"] == "image" for s in before)
            for name, values in codes.items():
                values += getattr(sample, name)[skipped : skipped + row["image_codes"]].tolist()
        assert text == [token for segment in document["segments"] for token in segment["text"] or ()]
        for name, values in codes.items():
            assert values == [code for segment in document["segments"] for code in segment[name] or ()]


def test_a_plain_webdataset_reader_gets_the_same(sound_set: Any) -> None:
    shards = ShardSet.open(sound_set.path)
    urls = [str(sound_set.path / shard.name) for shard in ShardSet.open(sound_set.path).shards]
    count = 0
    for number, sample in enumerate(wds.WebDataset(urls, shardshuffle=False, handler=wds.reraise_exception).decode()):
        ours = shards.read(number)
        assert sample["__key__"] == ours.key == shards.key(number)
        assert sample["json"] == {"cost": ours.cost, "segments": list(ours.segments)}
        for name in ("text", "input", "target"):
            np.testing.assert_array_equal(sample[f"{name}.npy"], getattr(ours, name))
        count += 1
    assert count == len(shards)


def test_two_writings_are_byte_for_byte_equal(make_set: Any) -> None:
    one, other = make_set(name="one"), make_set(name="other")
    assert files(one.path) == files(other.path)
    # A manifest may be written by one process of shards that others wrote, and sent as JSON.
    infos = (ShardInfo.model_validate_json(info.model_dump_json()) for info in other.shards)
    again, _ = write_manifest(
        other.path,
        infos,
        config=other.config,
        text_tokenizer=other.manifest.text_tokenizer,
        vision_tokenizer=other.manifest.vision_tokenizer,
        parents=other.manifest.parents,
    )
    assert again == one.manifest
    assert files(one.path) == files(other.path)


def test_tars_carry_no_time_and_no_owner_and_their_index_is_right(sound_set: Any) -> None:
    for shard in ShardSet.open(sound_set.path).shards:
        path = sound_set.path / shard.name
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            end = tar.offset
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in members} == {(0, 0, 0, "", "", tarfile.REGTYPE)}
        keys = [member.name.partition(".")[0] for member in members]
        assert keys == sorted(keys)
        assert [member.name.partition(".")[2] for member in members[:4]] == ["input.npy", "json", "target.npy", "text.npy"]
        index = np.fromfile(path.with_name(shard.name + ".idx"), dtype="<u8")
        assert index.tolist() == [member.offset for member in members[::4]] + [end]


def test_nv_meta_describes_the_shards(sound_set: Any) -> None:
    meta = {
        name: yaml.safe_load((sound_set.path / ".nv-meta" / name).read_text()) for name in ("dataset.yaml", "split.yaml")
    }
    counts = {shard.name: shard.samples for shard in ShardSet.open(sound_set.path).shards}
    assert json.loads((sound_set.path / ".nv-meta/.info.json").read_text())["shard_counts"] == counts
    assert meta["split.yaml"]["split_parts"] == {"train": list(counts), "val": [], "test": []}
    assert meta["dataset.yaml"]["__class__"] == "CrudeWebdataset"


def test_numbers_and_keys_have_bounds(sound_set: Any) -> None:
    shards = ShardSet.open(sound_set.path)
    for number in (-1, len(shards)):
        with pytest.raises(IndexError, match="outside the set"):
            shards.read(number)
    listed = [key for shard in shards.shards for key in shards.samples(shard)["key"].to_pylist()]
    assert [shards.key(number) for number in range(len(shards))] == listed


def test_an_address_is_as_good_as_a_path(sound_set: Any) -> None:
    shards = ShardSet.open(sound_set.path.as_uri(), verify="full")
    assert shards.read(3).key == ShardSet.open(sound_set.path).read(3).key


def test_totals_are_those_of_the_documents(sound_set: Any) -> None:
    totals, documents = sound_set.manifest.totals, sound_set.documents.values()
    segments = [segment for document in documents for segment in document["segments"]]
    assert totals.documents == len(sound_set.documents)
    assert totals.text_tokens == sum(len(segment["text"] or ()) for segment in segments)
    assert totals.image_codes == sum(len(segment["target"] or ()) for segment in segments)
    assert totals.images == sum(segment["kind"] == "image" for segment in segments)
    assert totals.slots == totals.text_tokens + totals.image_codes + totals.images
    by_licence = sound_set.manifest.tokens_by_licence
    assert set(by_licence) == {"CC-BY-4.0", "LGPL-2.1", "(unknown)"}
    for licence in ("CC-BY-4.0", "LGPL-2.1"):
        mine = [s for document in documents if document["licence"] == licence for s in document["segments"]]
        assert by_licence[licence].text_tokens == sum(len(segment["text"] or ()) for segment in mine)


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_one_flipped_byte_is_refused_by_the_read_that_meets_it(make_set: Any) -> None:
    """The lowest bit of a code: still a valid code, so only the checksum can tell."""
    made = make_set()
    with tarfile.open(made.path / "shard-000001.tar") as tar:
        member = next(m for m in tar.getmembers() if m.name == "000001-000002.target.npy")
        at = member.offset_data + member.size - 2
    damage(made.path / "shard-000001.tar", at)
    shards = ShardSet.open(made.path)
    first = shards.shards[0].samples
    with pytest.raises(ShardError, match=r"shard-000001\.tar, sample 000001-000002.*crc32") as error:
        shards.read(first + 2)
    assert (error.value.shard, error.value.key) == ("shard-000001.tar", "000001-000002")
    shards.read(first + 1)
    with pytest.raises(ShardError, match=r"shard-000001\.tar was changed after it was written"):
        shards.verify("full")
    with pytest.raises(ShardError, match=r"shard-000001\.tar was changed after it was written"):
        ShardSet.open(made.path, verify="full")


def test_a_file_missing_or_cut_is_refused_where_sizes_are_asked_for(make_set: Any) -> None:
    made = make_set()
    shard = made.path / "shard-000001.tar"
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar is missing"):
        ShardSet.open(made.path, verify="sizes")
    shard.write_bytes(whole[:-512])
    with pytest.raises(
        ShardError, match=rf"shard-000001\.tar has {len(whole) - 512} bytes, manifest\.json states {len(whole)}"
    ):
        ShardSet.open(made.path, verify="sizes")


@pytest.mark.parametrize("name", ["shards.parquet", "samples/shard-000001.parquet"])
def test_a_table_that_was_changed_is_refused_by_the_read_that_needs_it(make_set: Any, name: str) -> None:
    made = make_set()
    damage(made.path / name, 30)
    shards = ShardSet.open(made.path)
    with pytest.raises(ShardError, match=f"{name} is not the file"):
        shards.read(5)
    damage(made.path / name, 30)
    assert shards.read(5).key == "000001-000001"


def test_opening_reads_the_manifest_and_a_sample_three_ranges(sound_set: Any) -> None:
    """However many shards: no request a shard. Another process opens the same set of its head, and reads nothing."""
    opened: list[str] = []

    def opener(path: Any) -> Any:
        opened.append(path.relative_to(sound_set.path).as_posix())
        return path.open("rb")

    shards = ShardSet.open(sound_set.path, opener=opener)
    assert opened == ["manifest.json"] and len(shards) == len(sound_set.plan.packs)
    other = ShardSet.from_head(json.loads(json.dumps(shards.head())), opener=opener)
    assert opened == ["manifest.json"] and (len(other), other.manifest) == (len(shards), shards.manifest)
    number = len(shards) - 1
    assert other.read(number).key == other.read(number).key
    last = other.key(number)[:6]
    assert opened[1:] == ["shards.parquet", f"samples/shard-{last}.parquet", *[f"shard-{last}.tar"] * 2]
    sent = pickle.loads(pickle.dumps(ShardSet.open(sound_set.path)))  # noqa: S301 (what this very test made)
    assert sent.read(0).key == shards.read(0).key
    assert len(pickle.dumps(sent)) < 10_000


def test_a_set_without_manifest_was_never_committed(tmp_path: Path, make_set: Any) -> None:
    with pytest.raises(ShardError, match=r"is no shard set: it has no manifest\.json"):
        ShardSet.open(tmp_path / "nowhere")
    made = make_set()
    (made.path / "manifest.json").unlink()
    with pytest.raises(ShardError, match="nothing was committed"):
        ShardSet.open(made.path)


def test_a_gap_in_shards_is_refused_when_writing(make_set: Any, tmp_path: Path) -> None:
    made = make_set()
    with pytest.raises(ValueError, match=r"shard 1 is missing: after it comes shard-000002\.tar"):
        write_manifest(
            tmp_path / "gap",
            [made.shards[0], *made.shards[2:]],
            config=made.config,
            text_tokenizer=TextTokenizerRecord(sha256="a" * 64, vocab_size=10),
            vision_tokenizer=None,
            parents={},
        )
    assert not (tmp_path / "gap" / "manifest.json").exists()


def test_a_shard_that_fails_leaves_nothing_behind(make_set: Any, tmp_path: Path) -> None:
    made = make_set()
    packs = [build_pack(pack, made.documents) for pack in made.plan.packs]
    bad = next(number for number, pack in enumerate(packs) if len(pack.target))
    packs[bad] = replace(packs[bad], target=packs[bad].target + 5000)
    with pytest.raises(ValueError, match=rf"000007-{bad:06d}: target code \d+ does not fit a codebook of 4096"):
        write_shard(tmp_path / "shard-000007.tar", packs, 4096, made.config)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    with pytest.raises(ValueError, match=r"a shard is called shard-000000\.tar, not part-7\.tar"):
        write_shard(tmp_path / "part-7.tar", packs, 4096, made.config)


def test_an_empty_set_and_one_without_images(make_set: Any) -> None:
    empty = make_set(count=0, name="empty")
    assert len(ShardSet.open(empty.path, verify="full")) == 0
    with tarfile.open(empty.path / "shard-000000.tar") as tar:
        assert tar.getmembers() == []


def test_a_manifest_that_names_another_codebook_is_noticed(make_set: Any) -> None:
    made = make_set()
    vision = made.manifest.vision_tokenizer.model_copy(update={"codebook_size": 200})
    (made.path / "manifest.json").write_bytes(to_bytes(seal(made.manifest.model_copy(update={"vision_tokenizer": vision}))))
    with pytest.raises(ShardError, match=r"input\.npy: .*\|u1"):
        list(ShardSet.open(made.path))


def test_a_plan_and_documents_that_differ_are_refused(sound_set: Any) -> None:
    pack = sound_set.plan.packs[0]
    doc_id = pack.pieces[0].doc_id
    with pytest.raises(KeyError, match=doc_id):
        build_pack(pack, {})
    shorter = {**sound_set.documents[doc_id], "segments": sound_set.documents[doc_id]["segments"][:0]}
    with pytest.raises(ValueError, match="is not what was planned"):
        build_pack(pack, {**sound_set.documents, doc_id: shorter})


def test_reading_needs_neither_torch_nor_spark() -> None:
    code = (
        "import sys, nextflow_tokenize.shards.reader, nextflow_tokenize.audit.shard_set, nextflow_tokenize.shards.writer, "
        "nextflow_tokenize.packing.plan; print({'torch', 'pyspark', 'webdataset', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_set_that_was_shipped_is_read_by_every_later_version() -> None:
    """fixtures/shards, format 1 as the first version wrote it: ten drawn pages with a picture each."""
    shipped = ShardSet.open(Path(__file__).parents[1] / "fixtures" / "shards", verify="full")
    assert len(shipped) == 20 and shipped.manifest.format_version == 1
    assert [row["piece"] for row in shipped.pieces_of(shipped.read(3).segments[0]["doc"])] == [0, 1]
    assert shipped.manifest.totals.images == sum(s["kind"] == "image" for pack in shipped for s in pack.segments) == 10


def test_a_set_of_format_2_is_read_by_every_later_version() -> None:
    """fixtures/shards_2, as format 2 was first written: six documents of `tests/tokenize/conftest.py`."""
    shipped = ShardSet.open(Path(__file__).parents[1] / "fixtures" / "shards_2", verify="full")
    assert shipped.manifest.format_version == 2
    assert shipped.manifest.set_identity == "64ac4bc9bb6f7abf56014da17468b79d571775f862aaa648d7e592311d39758e"
    totals = shipped.manifest.totals
    assert (totals.shards, len(shipped), totals.documents, totals.images) == (1, 4, 6, 5)
    assert sum(pack.slots for pack in shipped) == totals.slots
    pieces = shipped.pieces_of(shipped.read(0).segments[0]["doc"])
    assert shipped.key(0) in [row["key"] for row in pieces]
    assert audit(shipped.path).findings == []


def test_a_set_in_a_store_is_read_verified_and_audited(sound_set: Any, s3_root: StorePath) -> None:
    for name, data in files(sound_set.path).items():
        put(s3_root / name, data)
    shards = ShardSet.open(s3_root, verify="sizes")
    here = ShardSet.open(sound_set.path)
    for number in (0, len(shards) - 1):
        one, other = shards.read(number), here.read(number)
        assert (one.key, one.segments) == (other.key, other.segments)
    doc_id = here.read(0).segments[0]["doc"]
    assert shards.pieces_of(doc_id) == here.pieces_of(doc_id)
    found = audit(s3_root)
    assert found.findings == [] and found.to_dict() == audit(sound_set.path).to_dict()
    put(s3_root / "shard-000001.tar", b"x" + (sound_set.path / "shard-000001.tar").read_bytes()[1:])
    (s3_root / "shard-000000.tar.idx").unlink()
    assert {finding.shard for finding in audit(s3_root).findings} == {"shard-000000.tar.idx", "shard-000001.tar"}
    with pytest.raises(ShardError, match=r"shard-000000\.tar\.idx is missing from s3://"):
        shards.verify("sizes")
