"""Duplicates: what is found, who stays, and that neither depends on the order in which anything comes."""

import io
import random
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nextflow_data.config import DedupConfig, IngestConfig
from nextflow_data.decisions import DECISION_SCHEMA
from nextflow_data.dedup.clusters import bucket_pairs, connected_components
from nextflow_data.dedup.images import (
    confirm,
    decide_images,
    difference,
    hamming,
    image_keys,
    is_candidate,
    occurrences,
    remove_images,
    thumbnail,
)
from nextflow_data.dedup.minhash import signature, signature_keys, similarity_of, text_hash
from nextflow_data.dedup.texts import choose_survivor, decide_documents, summarise
from nextflow_data.document import image_node
from nextflow_data.images.measure import measure
from PIL import Image

CONFIG = DedupConfig()
WORDS = [
    f"{a}{b}"
    for a in ("ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "vu")
    for b in ("lan", "mer", "nis", "por", "tak", "ul")
]


def prose(seed, words=300):
    r = random.Random(seed)
    return " ".join(r.choice(WORDS) for _ in range(words))


def edited(text, seed, changes):
    words, r = text.split(), random.Random(seed)
    for position in r.sample(range(len(words)), changes):
        words[position] = r.choice(WORDS)
    return " ".join(words)


def shingles(text, n=5):
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def band_keys(document, config):
    found = signature(document, config)
    return set() if found is None else set(signature_keys(found, config))


def duplicate_edges(documents, config):
    """Every pair, looked at: equal texts, or a band in common and alike enough."""
    edges = []
    for a, b in combinations(sorted(documents, key=lambda d: d["doc_id"]), 2):
        if text_hash(a) == text_hash(b):
            edges.append((a["doc_id"], b["doc_id"], 1.0))
        elif band_keys(a, config) & band_keys(b, config):
            value = similarity_of(signature(a, config), signature(b, config))
            edges += [(a["doc_id"], b["doc_id"], value)] if value >= config.min_similarity else []
    return edges


def decide(documents, config=CONFIG):
    summaries = {d["doc_id"]: summarise(d, config) for d in documents}
    return decide_documents(summaries, duplicate_edges(documents, config), config)


def test_equal_texts_by_hash(build):
    a, b = build.document("https://a/1", "Some  text\nhere"), build.document("https://b/2", "Some text", "here")
    assert text_hash(a) == text_hash(b) != text_hash(build.document("https://c/", "Some text Here"))
    (decision,) = decide([a, b])
    assert (decision["rule"], decision["value"], decision["action"]) == ("dedup.exact", 1.0, "drop")


def test_estimate_is_near_the_true_similarity(build):
    """Standard error of 112 hashes is at most 0.048: five of them is beyond any seed's luck over these pairs."""
    for seed, changes in enumerate((0, 3, 10, 20, 40, 300)):
        text = prose(seed)
        other = edited(text, seed, changes)
        found = similarity_of(
            signature(build.document("https://a/", text), CONFIG), signature(build.document("https://b/", other), CONFIG)
        )
        assert found == pytest.approx(jaccard(text, other), abs=0.24)
    many = [edited(prose(1), seed, 15) for seed in range(40)]
    first = signature(build.document("https://a/", prose(1)), CONFIG)
    errors = [similarity_of(first, signature(build.document("https://b/", t), CONFIG)) - jaccard(prose(1), t) for t in many]
    assert abs(np.mean(errors)) < 0.03


def test_near_duplicates_share_bands_as_the_theory_says(build):
    """P = 1-(1-s^8)^14: at s = 0.9 1.00 of pairs, at s = 0.5 0.05, at s = 0.1 none."""
    shared = {0.9: 0, 0.5: 0, 0.1: 0}
    for seed in range(60):
        text = prose(seed, 400)
        for level, changes in ((0.9, 4), (0.5, 30), (0.1, 150)):
            a, b = build.document("https://a/", text), build.document("https://b/", edited(text, seed, changes))
            shared[level] += bool(band_keys(a, CONFIG) & band_keys(b, CONFIG))
    assert shared[0.9] >= 58 and shared[0.5] <= 15 and shared[0.1] == 0


def test_signature_does_not_depend_on_case_marks_or_numbers(build):
    a = build.document("https://a/", prose(1) + " café 17")
    b = build.document("https://b/", prose(1).upper().replace(" ", ",  ") + " Cafe 99!")
    assert (signature(a, CONFIG) == signature(b, CONFIG)).all()


def test_short_texts_are_compared_only_exactly(build):
    assert signature(build.document("https://a/", "a b c d e f"), CONFIG) is None
    assert band_keys(build.document("https://a/", "a b c d e f"), CONFIG) == set()


def test_survivor_is_the_richest_copy(build):
    text = prose(5)
    plain, longer = build.document("https://a/", text), build.document("https://b/", text + " and one more word")
    pictured = build.document("https://c/", edited(text, 1, 2))
    pictured["nodes"].append(image_node({"sha256": "0" * 64}))
    decisions = decide([plain, longer, pictured])
    assert {d["doc_id"] for d in decisions} == {plain["doc_id"], longer["doc_id"]}
    assert all(f"kept {pictured['doc_id']} https://c/" == d["detail"] for d in decisions)
    assert all(d["rule"] == "dedup.min_similarity" and 0.8 <= d["value"] <= 1 and d["threshold"] == 0.8 for d in decisions)
    tied = [summarise(build.document(f"https://x/{n}", text), CONFIG) for n in range(5)]
    assert choose_survivor(tied)["doc_id"] == min(s["doc_id"] for s in tied)
    assert pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA).to_pylist() == decisions


@settings(max_examples=25, deadline=None)
@given(
    st.randoms(use_true_random=False), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=2, max_size=10)
)
def test_order_and_partition_do_not_change_survivors(build, shuffler, recipe):
    documents = [
        build.document(f"https://{n}.example/", edited(prose(seed, 120), n, changes))
        for n, (seed, changes) in enumerate(recipe)
    ]
    expected = decide(documents)
    shuffled = documents[:]
    shuffler.shuffle(shuffled)
    assert decide(shuffled) == expected
    dropped = {d["doc_id"] for d in expected}
    assert decide([d for d in documents if d["doc_id"] not in dropped]) == []


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=12), st.randoms())
def test_components_are_those_of_a_naive_search(edges, shuffler):
    labels = connected_components(edges)
    for one in {x for edge in edges for x in edge}:
        reached, todo = {one}, [one]
        while todo:
            here = todo.pop()
            for a, b in edges:
                for x, y in ((a, b), (b, a)):
                    if x == here and y not in reached:
                        reached.add(y)
                        todo.append(y)
        assert labels[one] == min(reached)
    shuffled = edges[:]
    shuffler.shuffle(shuffled)
    assert connected_components(shuffled) == labels


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=10))
def test_bucket_pairs_connect_the_bucket_in_linear_number(ids):
    pairs = bucket_pairs(ids)
    assert len(pairs) <= 2 * len(set(ids)) and all(a < b for a, b in pairs)
    assert len(set(connected_components(pairs).values())) <= 1


# Images


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=6), st.integers(0, 10))
def test_hashes_within_the_radius_always_share_a_key(value, flips, radius):
    config = DedupConfig(image_hamming=radius)
    other = value
    for bit in sorted(flips)[:radius]:
        other ^= 1 << bit
    a, b = f"{value:016x}", f"{other:016x}"
    assert hamming(a, b) == len(sorted(flips)[:radius])
    assert set(image_keys(a, config)) & set(image_keys(b, config))


@pytest.fixture(scope="module")
def pictures(build):
    """Bytes by name: an original, copies of it, and things that only look like copies to a hash."""

    def encode(image, form, **options):
        out = io.BytesIO()
        image.save(out, form, **options)
        return out.getvalue()

    original = build.png(320, 240, seed=1)
    opened = Image.open(io.BytesIO(original))
    return {
        "original": original,
        "again": original,
        "small": encode(opened.resize((160, 120), Image.Resampling.BICUBIC), "PNG"),
        "jpeg": encode(opened, "JPEG", quality=70),
        "tinted": encode(Image.blend(opened, Image.new("RGB", opened.size, (255, 0, 0)), 0.3), "PNG"),
        "other": build.png(320, 240, seed=2),
    }


@pytest.fixture(scope="module")
def gallery(build, pictures):
    """One document a picture, and one that shows three of them."""

    def node(name):
        measured = measure(pictures[name], IngestConfig())
        return image_node({"ref": {"uri": name, "offset": 0, "length": 1}, "address": None, "alt": None, "caption": None,
                           "captioner": None, **measured})  # fmt: skip

    documents = []
    for number, names in enumerate([[n] for n in pictures] + [["jpeg", "other", "jpeg"]]):
        document = build.document(f"https://{number}.example/")
        document["nodes"] = [node(name) for name in names]
        documents.append(document)
    return documents


def candidate_pairs(images, config):
    """Every pair of distinct images, looked at: a key in common, and hashes and shapes near enough."""
    found = {image["sha256"]: image for image in images}
    keys = {sha256: set(image_keys(image["phash"], config)) for sha256, image in found.items()}
    pairs = combinations(sorted(found), 2)
    return [(a, b) for a, b in pairs if keys[a] & keys[b] and is_candidate(found[a], found[b], config)]


def run_images(documents, pictures, config=CONFIG):
    images = [o for d in documents for o in occurrences(d)]
    load = {measure(payload, IngestConfig())["sha256"]: payload for payload in pictures.values()}.__getitem__
    edges = confirm(candidate_pairs(images, config), load, config, IngestConfig())
    return decide_images(images, edges, config)


def test_pixels_tell_copies_from_likenesses(pictures):
    def same_image(a, b, config):
        return difference(*(thumbnail(payload, config, IngestConfig()) for payload in (a, b)))

    assert same_image(pictures["original"], pictures["again"], CONFIG) == 0
    for name in ("small", "jpeg"):
        assert same_image(pictures["original"], pictures[name], CONFIG) <= CONFIG.image_max_difference
    for name in ("tinted", "other"):
        assert same_image(pictures["original"], pictures[name], CONFIG) > CONFIG.image_max_difference
    black, white = (Image.new("RGB", (9, 9), c) for c in ("black", "white"))
    payloads = []
    for image in (black, white):
        out = io.BytesIO()
        image.save(out, "PNG")
        payloads.append(out.getvalue())
    assert same_image(*payloads, CONFIG) == 1


def test_copies_of_an_image_go_and_the_largest_stays(build, gallery, pictures):
    decisions = run_images(gallery, pictures)
    kept = {name: d["doc_id"] for name, d in zip(pictures, gallery, strict=False)}
    gone = {(d["doc_id"], d["index"]) for d in decisions}
    assert (kept["tinted"], 0) not in gone
    assert (kept["small"], 0) in gone  # fewer pixels than its copies
    everything = {(d["doc_id"], i) for d in gallery for i in range(len(d["nodes"]))}
    assert len(everything - gone) == 3  # the picture, the tinted one and the other
    for decision in decisions:
        assert decision["action"] == "drop" and decision["scope"] == "node" and decision["value"] <= decision["threshold"]
        exact = decision["rule"] == "dedup.image_exact"
        assert (decision["value"] == 0) if exact else (0 < decision["value"] <= CONFIG.image_max_difference)
    assert pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA).num_rows == len(decisions)


def test_within_one_document_only(gallery, pictures):
    decisions = run_images(gallery, pictures, DedupConfig(across_documents=False))
    assert [(d["doc_id"], d["index"]) for d in decisions] == [(gallery[-1]["doc_id"], 2)]
    document = remove_images(gallery[-1], decisions)
    assert len(document["nodes"]) == 2


def test_document_that_loses_all_its_images_is_gone(gallery, pictures):
    decisions = run_images(gallery, pictures)
    by_name = dict(zip(pictures, gallery, strict=False))
    assert remove_images(by_name["small"], decisions) is None


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["largest", "first"]))
def test_order_does_not_change_which_images_stay(gallery, pictures, shuffler, keep):
    config = DedupConfig(keep=keep)
    expected = run_images(gallery, pictures, config)
    shuffled = gallery[:]
    shuffler.shuffle(shuffled)
    assert run_images(shuffled, pictures, config) == expected


def test_every_removed_image_was_compared_with_the_one_that_stays():
    """A chain a–b–c where a and c differ: c is no copy of a and stays."""
    images = [
        {"doc_id": f"d{n}", "address": "x", "node": 0, "sha256": n, "phash": "0" * 16, "width": 10, "height": 10}
        for n in "abc"
    ]
    decisions = decide_images(images, [("a", "b", 0.01), ("b", "c", 0.01)], CONFIG)
    assert [(d["doc_id"], d["detail"]) for d in decisions] == [("db", "b: kept da node 0 a")]


def test_unreadable_image_has_no_duplicates(gallery, pictures):
    images = [o for d in gallery for o in occurrences(d)]
    pairs = candidate_pairs(images, CONFIG)
    assert pairs and set(pairs) <= set(combinations(sorted({i["sha256"] for i in images}), 2))
    assert confirm(pairs, lambda sha256: b"broken", CONFIG, IngestConfig()) == []
