"""Generation on a real (tiny, random) Megatron model: cached passes, sampling in range, and a checkpoint end to end."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from nextflow_tokenize.config import TextTokenizerConfig, VisionTokenizerConfig
from nextflow_tokenize.schedule import canonical_final, grids, token_count
from nextflow_tokenize.segments import ImageSegment, TextSegment
from nextflow_tokenize.text import TextTokenizer, train_bpe
from nextflow_tokenize.vision.identity import identity, load_codebook
from nextflow_tokenize.vision.model import VisionTokenizer
from PIL import Image

from megatron_nextflow.attention import BlockRangeParams
from megatron_nextflow.cache import CachedModel, KeyValueCache, window
from megatron_nextflow.checkpoint import CheckpointError, CheckpointState, save
from megatron_nextflow.config import FeedConfig, TrainConfig
from megatron_nextflow.generate import continue_ids, document, generate, sample_codes
from megatron_nextflow.generate_config import GenerateConfig
from megatron_nextflow.initialise import initialise
from megatron_nextflow.layout import ImageInput, LayoutConfig, build_layout, collate
from megatron_nextflow.model import NextFlowModel
from megatron_nextflow.model_config import ModelConfig
from megatron_nextflow.request import GenerationError, image_grids_of
from megatron_nextflow.spec import transformer_config
from megatron_nextflow.training import Trainer, start_parallel
from megatron_nextflow.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=40, codes=24)
LAYOUT = LayoutConfig()


@pytest.fixture(scope="module")
def model() -> Iterator[NextFlowModel]:
    mine = not parallel_state.model_parallel_is_initialized()
    config = TrainConfig(
        model=ModelConfig(hidden_size=48, layers=3, heads=4, query_groups=2, ffn_size=96, init_std=0.3, seed=5)
    )
    if mine:
        start_parallel(config)
    codebook = torch.nn.functional.normalize(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    built = NextFlowModel(transformer_config(config), config.model, VOCABULARY, codebook)
    initialise(built.sharded_state_dict(), config.model)
    yield built.eval()
    if mine:
        parallel_state.destroy_model_parallel()


@torch.no_grad()
def test_cached_logits_equal_those_of_one_whole_pass(model: NextFlowModel) -> None:
    """Two rows of different lengths, each: text, an image, text. Teacher-forced, block by block."""
    schedule = grids(canonical_final((48, 84), 6), 6)
    rng = np.random.default_rng(0)
    n = token_count(schedule)
    codes = rng.integers(0, 24, (2, n))
    layouts = []
    for row, words in enumerate((9, 1)):
        segments = [
            TextSegment(kind="text", doc="a", tokens=words, loss=True),
            ImageSegment(kind="image", doc="a", sha256="", grid=list(schedule[-1]), scales=6, loss=True),
            TextSegment(kind="text", doc="a", tokens=3, loss=True),
        ]
        text = rng.integers(0, 40, words + 3)
        layouts.append(build_layout(segments, text, codes[row], codes[row], VOCABULARY, words + n + 4))
    whole = []
    for layout in layouts:
        batch = collate([layout])
        whole.append(model(batch, BlockRangeParams.of(batch.visible))[:, 0])
    cached = CachedModel(model, 2, max(layout.used for layout in layouts))
    at = [10, 2]
    pieces = [cached.feed([window(layout, 0, a) for layout, a in zip(layouts, at, strict=True)])]
    sizes = [h * w for h, w in schedule]
    for k, (source, target) in enumerate(itertools.pairwise(schedule), start=1):
        start = sum(sizes[: k - 1])
        feeds = [(ImageInput((source, target), row[start : start + sizes[k - 1]]),) for row in codes]
        pieces.append(cached.feed([window(x, a, a + sizes[k], f) for x, a, f in zip(layouts, at, feeds, strict=True)]))
        at = [a + sizes[k] for a in at]
    for _ in range(2):
        pieces.append(cached.feed([window(layout, a, a + 2) for layout, a in zip(layouts, at, strict=True)]))
        at = [a + 2 for a in at]
    assert cached.passes == 6 + 2
    for row, layout in enumerate(layouts):
        assert at[row] == layout.used
        found = torch.cat([piece[row] for piece in pieces])[:, : VOCABULARY.size]
        torch.testing.assert_close(found, whole[row][:, : VOCABULARY.size], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_greedy_codes_are_those_of_uncached_passes(model: NextFlowModel) -> None:
    """Every scale's codes from a whole pass over all before it, conditional and not, guided as VAR does."""
    schedule, prompt, guidance = grids((64, 64), 5), [3, 1, 4], 2.0
    found = sample_codes(model, prompt, schedule, GenerateConfig(top_k=1, guidance=guidance), LAYOUT)
    sizes = [h * w for h, w in schedule]
    expected = np.zeros(sum(sizes), np.int64)
    for k in range(5):
        rows = []
        for ids in (prompt, []):
            layout = document(ids, schedule, VOCABULARY, LAYOUT)
            batch = collate([layout])
            (image,) = batch.images
            image.codes[:] = expected
            logits = model(batch, BlockRangeParams.of(batch.visible))[:, 0]
            first = len(ids) + sum(sizes[:k])
            rows.append(logits[first : first + sizes[k], VOCABULARY.code_offset : VOCABULARY.size])
        t = guidance * k / 4
        chosen = ((1 + t) * rows[0] - t * rows[1]).argmax(-1)
        expected[sum(sizes[:k]) : sum(sizes[: k + 1])] = chosen.numpy()
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) > 3, "a random model should not give one code everywhere"


def test_codes_lie_in_the_codebook_and_follow_prompt_and_seed(model: NextFlowModel) -> None:
    schedule = grids((32, 128), 8)
    base = GenerateConfig(seed=1)
    one = sample_codes(model, [1, 2], schedule, base, LAYOUT)
    assert one.shape == (token_count(schedule),) and one.min() >= 0 and one.max() < 24
    assert np.array_equal(one, sample_codes(model, [1, 2], schedule, base, LAYOUT))
    assert not np.array_equal(one, sample_codes(model, [1, 2], schedule, GenerateConfig(seed=2), LAYOUT))
    assert not np.array_equal(one, sample_codes(model, [7, 7, 7], schedule, base, LAYOUT))
    assert len(sample_codes(model, [], grids((64, 64), 1), base, LAYOUT)) == 1


@torch.no_grad()
def test_a_continuation_is_text_only_and_equals_whole_passes(model: NextFlowModel) -> None:
    prompt = [5, 6, 7]
    greedy = continue_ids(model, prompt, 6, None, GenerateConfig(top_k=1), LAYOUT)
    ids = list(prompt)
    for _ in range(6):
        batch = collate([document(ids, None, VOCABULARY, LAYOUT)])
        ids.append(int(model(batch, BlockRangeParams.of(batch.visible))[-1, 0, :40].argmax()))
    assert greedy == ids[3:]
    assert continue_ids(model, prompt, 6, greedy[2], GenerateConfig(top_k=1), LAYOUT) == greedy[: greedy.index(greedy[2])]
    drawn = continue_ids(model, prompt, 60, None, GenerateConfig(temperature=10), LAYOUT)
    assert len(drawn) == 60 and max(drawn) < 40
    with pytest.raises(GenerationError, match="prompt"):
        continue_ids(model, [], 5, None, GenerateConfig(top_p=1), LAYOUT)


def test_a_schedule_that_no_shard_could_name_is_refused() -> None:
    schedule = grids((48, 84), 6)
    assert schedule != grids(canonical_final((48, 84), 6), 6)
    with pytest.raises(GenerationError, match="canonical"):
        document([1], schedule, VOCABULARY, LAYOUT)


def test_a_cache_that_would_overflow_is_refused() -> None:
    cache = KeyValueCache(2, 4)
    cache.begin([4, 1])
    cache.commit()
    with pytest.raises(ValueError, match="do not fit"):
        cache.begin([1, 1])


@pytest.mark.parametrize(
    ("level", "ratio", "last"), [(128, 1.0, (8, 8)), (256, 0.25, (8, 32)), (1024, 1.0, (64, 64)), (1024, 4.0, (128, 32))]
)
def test_the_schedule_of_a_request(level: int, ratio: float, last: tuple[int, int]) -> None:
    assert image_grids_of(level, ratio)[-1] == last


@pytest.mark.parametrize(("level", "ratio"), [(300, 1.0), (256, 0.0), (256, -1.0), (256, 1e9), (256, float("nan"))])
def test_a_request_outside_the_schedule_is_refused(level: int, ratio: float) -> None:
    with pytest.raises(GenerationError):
        image_grids_of(level, ratio)


WORDS = ["a red square", "a blue circle on a table", "the quick brown fox", "squares and circles"]


@dataclass(frozen=True)
class Run:
    """A training run's folder with one checkpoint, and the tokenizers it names."""

    output: Path
    step: Path
    text: Path
    vision: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: NextFlowModel) -> Run:
    """Real tokenizers (untrained vision weights), a real trainer's checkpoint, and train.json as the launcher leaves it."""
    root = tmp_path_factory.mktemp("run")
    text = root / "tokenizer.json"
    train_bpe(WORDS, TextTokenizerConfig(vocab_size=300), text)
    torch.manual_seed(0)
    vision = root / "vision"
    sizes = {"codebook_size": 32, "semantic_dim": 3, "pixel_dim": 5, "channels": 8, "levels": (128,)}
    VisionTokenizer(VisionTokenizerConfig.model_validate(sizes)).save(vision)
    config = TrainConfig(
        output=root / "train",
        model=ModelConfig(hidden_size=32, layers=2, heads=2, query_groups=1, ffn_size=64, max_length=400, init_std=0.2),
        data=FeedConfig(vision_tokenizer=vision, text_tokenizer=text, global_batch_size=1),
    )
    tokenizer = TextTokenizer.load(text)
    vocabulary = Vocabulary(tokenizer.vocab_size, 32)
    trainer = Trainer(config, vocabulary, torch.from_numpy(load_codebook(vision)), torch.device("cpu"))
    ids = tokenizer.encode(WORDS[0])
    empty = (np.zeros(0, int), np.zeros(0, int))
    segment = TextSegment(kind="text", doc="a", tokens=len(ids), loss=True)
    pack = build_layout([segment], np.array(ids), *empty, vocabulary, 400)
    trainer.step(iter([collate([pack])]))
    state = CheckpointState(
        step=1, consumed=1, seed=0, shards="none", text_tokenizer=tokenizer.hash, vision_tokenizer=identity(vision),
        text_vocabulary=vocabulary.text, codebook_size=32, codebook_dim=8, model=config.model, tp=1, pp=1, processes=1,
    )  # fmt: skip
    step = save(trainer, state, config.output, keep=1)
    (config.output / "train.json").write_text(config.model_dump_json(), encoding="utf-8")
    return Run(config.output, step, text, vision)


def test_a_checkpoint_draws_an_image_and_says_where_it_came_from(run: Run, tmp_path: Path) -> None:
    settings = GenerateConfig(level=128, aspect=0.5, seed=3)
    result = generate(run.output, "a red square", tmp_path / "new" / "image.png", settings)
    schedule = image_grids_of(128, 0.5)
    assert result.passes == 8 and result.grids == schedule and result.codes is not None
    written = Image.open(tmp_path / "new" / "image.png")
    assert written.size == (result.width, result.height) == (16 * schedule[-1][1], 16 * schedule[-1][0])
    tokenizer = VisionTokenizer.load(run.vision)
    pixels = tokenizer.decode(torch.from_numpy(result.codes)[None], schedule)[0].permute(1, 2, 0)
    assert np.abs(np.asarray(written) / 127.5 - 1 - pixels.numpy()).max() < 0.51 / 127.5
    said = written.text  # type: ignore[attr-defined]
    assert said["checkpoint"] == hashlib.sha256((run.step / "manifest.json").read_bytes()).hexdigest()
    assert said["vision_tokenizer"] == tokenizer.identity and json.loads(said["settings"])["seed"] == 3
    again = generate(run.step, "a red square", tmp_path / "again.png", settings, vision_tokenizer=run.vision)
    assert np.array_equal(again.codes, result.codes)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "new" / "image.png").read_bytes()


def test_a_checkpoint_continues_a_text(run: Run) -> None:
    result = generate(run.output, "the quick", None, GenerateConfig(max_tokens=5, seed=1))
    assert result.text and result.image is None and 1 <= result.passes <= 5


def test_tokenizers_that_are_not_the_checkpoints_are_refused(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    train_bpe([*WORDS, "another text altogether altogether"], TextTokenizerConfig(vocab_size=300), other)
    with pytest.raises(GenerationError, match=r"the text tokenizer at .* was trained with"):
        generate(run.output, "a", None, text_tokenizer=other)
    changed = tmp_path / "vision"
    shutil.copytree(run.vision, changed)
    config = changed / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(GenerationError, match=r"the vision tokenizer at .* was trained with"):
        generate(run.output, "a", tmp_path / "x.png", vision_tokenizer=changed)
    assert not (tmp_path / "x.png").exists()


def test_requests_the_model_cannot_meet_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="level 256 is not one of"):
        generate(run.output, "a", tmp_path / "x.png", GenerateConfig(level=256))
    with pytest.raises(GenerationError, match="trained on sequences of 400"):
        generate(run.output, "square " * 400, tmp_path / "x.png")
    with pytest.raises(GenerationError, match="neither a checkpoint folder nor a run"):
        generate(tmp_path, "a", None)
    (tmp_path / "alone").mkdir()
    shutil.copytree(run.step, tmp_path / "alone" / "checkpoints" / "step-00000000")
    with pytest.raises(GenerationError, match="give its path"):
        generate(tmp_path / "alone" / "checkpoints" / "step-00000000", "a", None)


def test_a_damaged_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "step-00000000"
    shutil.copytree(run.step, copy)
    victim = max((copy / "megatron").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match=victim.name):
        generate(copy, "a", None, text_tokenizer=run.text)


def test_the_module_runs_in_a_process_of_its_own(run: Run) -> None:
    """Also that nothing imports megatron.core before the device is set up, which this process cannot show."""
    command = [sys.executable, "-m", "megatron_nextflow.generate", str(run.output)]
    settings = GenerateConfig(max_tokens=4, top_k=1)
    done = subprocess.run(
        [*command, "the quick", "--settings", settings.model_dump_json()], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["text"] == generate(run.output, "the quick", None, settings).text
    refused = subprocess.run([*command, ""], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.strip().splitlines()[-1].startswith("a continuation needs")
