"""Text ids: every string comes back, training gives the same file, any tokenizer.json works."""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nextflow_tokenize.config.tokenize import TextTokenizerConfig
from nextflow_tokenize.documents.text_tokenizer import TextTokenizer, train_bpe
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = [
    "the",
    "surface",
    "of",
    "a",
    "screen",
    "is",
    "an",
    "array",
    "of",
    "pixels;",
    "événement,",
    "画面,",
    "Ωμέγα,",
    "🎮",
    "—",
    "naïve",
    "ﬁ",
]
CONFIG = TextTokenizerConfig(vocab_size=400)


def corpus(count=300):
    rng = random.Random(5)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    digest = train_bpe(corpus(), CONFIG, path)
    return path, digest


@given(st.text())
@example("<|endoftext|>")
@example("a<|endoftext|>b")
@example("\x00\x7f\u2028\ufeff\ufffd\u0301")
@example("  leading and trailing \n\t ")
@example("👩‍👩‍👧‍👦 עברית العربية ไทย")
def test_any_string_comes_back(trained, text):
    tokenizer = TextTokenizer.load(trained[0])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod_id not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_sizes_hash_and_end(trained):
    path, digest = trained
    tokenizer = TextTokenizer.load(path)
    assert digest == tokenizer.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert tokenizer.vocab_size <= 400
    assert tokenizer.decode([tokenizer.eod_id]) == ""
    # It learnt something: frequent words are shorter than their bytes.
    text = "the surface of the screen"
    assert len(tokenizer.encode(text)) < len(text) / 2


def test_training_gives_the_same_file_whatever_the_threads(trained, tmp_path):
    script = (
        "import json, sys; from nextflow_tokenize.documents.text_tokenizer import train_bpe;"
        "from nextflow_tokenize.config.tokenize import TextTokenizerConfig;"
        "print(train_bpe(json.load(open(sys.argv[1])), TextTokenizerConfig(vocab_size=400), sys.argv[2]))"
    )
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(corpus()))
    for threads in ("1", "2", "5"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": str(threads != "1").lower()}
        command = [sys.executable, "-c", script, str(texts), str(tmp_path / f"{threads}.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == trained[1]


def test_the_order_of_texts_does_not_matter(trained, tmp_path):
    assert train_bpe(reversed(corpus()), CONFIG, tmp_path / "t.json") == trained[1]


def test_any_tokenizer_by_path(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = TextTokenizer.load(tmp_path / "t.json", "</s>")
    assert loaded.encode("a b a b") == [0, 1, 0, 1]
    assert (loaded.eod_id, loaded.vocab_size) == (3, 4)
    with pytest.raises(ValueError, match=r"no token '<\|endoftext\|>'"):
        TextTokenizer.load(tmp_path / "t.json")


def test_what_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"t\.json is not a tokenizer\.json"):
        TextTokenizer.load(tmp_path / "t.json")
    (tmp_path / "t.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a tokenizer"):
        TextTokenizer.load(tmp_path / "t.json")
    with pytest.raises(FileNotFoundError):
        TextTokenizer.load(tmp_path / "none.json")
