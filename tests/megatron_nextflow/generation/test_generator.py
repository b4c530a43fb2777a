"""A checkpoint from end to end: images, text and both from real tokenizers, in this process and in one of its own."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nextflow_orchestration import generation
from nextflow_orchestration.generation import generate_from_run
from nextflow_orchestration.runs.records import RunPlace
from nextflow_tokenize.config.tokenize import TextTokenizerConfig
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.documents.text_tokenizer import TextTokenizer, train_bpe
from nextflow_tokenize.schedule import canonical_final, grids, token_count
from nextflow_tokenize.vision.identity import identity, load_codebook
from nextflow_tokenize.vision.images.pixels import fit, to_pixels
from nextflow_tokenize.vision.model import VisionTokenizer
from PIL import Image

from megatron_nextflow.checkpoint.format import CheckpointManifest, CheckpointState, read_manifest
from megatron_nextflow.checkpoint.save import Saver
from megatron_nextflow.config.generate import GenerateConfig, GenerationError
from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.config.train import FeedConfig, TrainConfig
from megatron_nextflow.generate import main
from megatron_nextflow.generation.cost import Work, generation_flops
from megatron_nextflow.generation.generator import generate, load_model
from megatron_nextflow.generation.growing_document import ImagePart, TextPart, layout_of
from megatron_nextflow.generation.prompt import parse_prompts
from megatron_nextflow.generation.request import Request, plan
from megatron_nextflow.generation.requirements import image_grids_of
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.runtime.training_folder import CheckpointError
from megatron_nextflow.sequence.batch import collate
from megatron_nextflow.sequence.vocabulary import Vocabulary
from megatron_nextflow.step.process_groups import start_parallel
from megatron_nextflow.step.trainer import Trainer

WORDS = ["a red square", "a blue circle on a table", "the quick brown fox", "squares and circles"]
CODES = 32


@dataclass(frozen=True)
class Run:
    """A training's folder with one checkpoint, the tokenizers it names, and two photographs, tall and wide."""

    output: Path
    step: Path
    text: Path
    vision: Path
    tall: Path
    wide: Path

    def request(self, prompt: str, *images: Path, **given: Any) -> Request:
        return Request(given.pop("checkpoint", self.output), parse_prompts([prompt], images), device="cpu", **given)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Real tokenizers (untrained vision weights), a real trainer's checkpoint, and train.json as the launcher leaves it."""
    root = tmp_path_factory.mktemp("run")
    text, vision = root / "tokenizer.json", root / "vision"
    train_bpe(WORDS, TextTokenizerConfig(vocab_size=300), text)
    torch.manual_seed(0)
    sizes = {"codebook_size": CODES, "semantic_dim": 3, "pixel_dim": 5, "channels": 8, "levels": (128,)}
    VisionTokenizer(VisionTokenizerConfig.model_validate(sizes)).save(vision)
    config = TrainConfig(
        output=root / "train",
        model=ModelConfig(hidden_size=32, layers=2, heads=2, query_groups=1, ffn_size=64, max_length=700, init_std=0.2),
        data=FeedConfig(vision_tokenizer=vision, text_tokenizer=text, global_batch_size=1),
        async_save=False,
    )
    tokenizer = TextTokenizer.load(text)
    start_parallel(config)
    vocabulary = Vocabulary(tokenizer.vocab_size, CODES)
    trainer = Trainer(config, vocabulary, torch.from_numpy(load_codebook(vision)), torch.device("cpu"))
    state = CheckpointState(
        step=1, consumed=1, seed=0, shards="none", text_tokenizer=tokenizer.hash, vision_tokenizer=identity(vision),
        text_vocabulary=vocabulary.text, codebook_size=CODES, codebook_dim=8, model=config.model,
    )  # fmt: skip
    saver = Saver(trainer, config)
    saver.begin(state)
    (step,) = saver.finish()
    (config.output / "train.json").write_text(config.model_dump_json(), encoding="utf-8")
    noise = np.random.default_rng(0)
    for name, size in (("tall", (200, 60)), ("wide", (50, 90))):
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / f"{name}.png")
    return Run(config.output, step, text, vision, root / "tall.png", root / "wide.png")


def test_a_checkpoint_draws_an_image_and_says_where_it_came_from(run: Run, tmp_path: Path) -> None:
    settings = GenerateConfig(level=128, aspect=0.5, seed=3)
    done = generate(run.request("a red square", out=tmp_path / "new" / "image.png", settings=settings))
    (result,) = done.results
    schedule = image_grids_of(128, 0.5)
    assert done.passes == 8 and result.grids == schedule and result.codes is not None and result.image is not None
    written = Image.open(tmp_path / "new" / "image.png")
    assert written.size == result.image.size == (16 * schedule[-1][1], 16 * schedule[-1][0])
    tokenizer = VisionTokenizer.load(run.vision)
    pixels = tokenizer.decode(torch.from_numpy(result.codes)[None], schedule)[0].permute(1, 2, 0)
    assert np.abs(np.asarray(written) / 127.5 - 1 - pixels.numpy()).max() < 0.51 / 127.5
    said = written.text  # type: ignore[attr-defined]
    assert said["checkpoint"] == hashlib.sha256((run.step / "manifest.json").read_bytes()).hexdigest()
    assert said["computed"] == "float32 on cpu"
    assert said["vision_tokenizer"] == tokenizer.identity and json.loads(said["settings"])["seed"] == 3
    again = run.request(
        "a red square", checkpoint=run.step, out=tmp_path / "again.png", settings=settings, vision_tokenizer=run.vision
    )
    assert np.array_equal(generate(again).results[0].codes, result.codes)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "new" / "image.png").read_bytes()
    model, ids = read_manifest(run.step).state.model, len(TextTokenizer.load(run.text).encode("a red square"))
    # Two rows, the second without the text; scale 1 needs no guidance. Pairs: blocks one after the other.
    codes, pairs = token_count(schedule), 0
    for before in (ids, 0):
        pairs += before * (before + 1) // 2 + before + 1
        seen = before + 1
        for h, w in schedule[1:]:
            seen += h * w
            pairs += h * w * seen
    work = Work(8, ids + 2 * codes, pairs, (2 * codes - 1) * CODES)
    assert done.flops == generation_flops(model, Vocabulary(300, CODES), work)


def test_results_of_several_prompts_are_those_made_alone(run: Run, tmp_path: Path) -> None:
    """Two prompts of other ratios and lengths, two results each, three at a time, with previews after each scale."""
    prompts = parse_prompts(["a red <image> square", "a blue circle <image>"], [run.tall, run.wide])
    settings = GenerateConfig(seed=5)
    request = Request(
        run.output, prompts, tmp_path / "cat.png", settings, n=2, batch=3, preview=tmp_path / "scales", device="cpu"
    )
    done = generate(request)
    assert [result.path for result in done.results] == [tmp_path / f"cat-{k}.png" for k in (1, 2, 3, 4)]
    alone = run.request("a blue circle <image>", run.wide, out=tmp_path / "one.png", settings=GenerateConfig(seed=6))
    (expected,) = generate(alone).results
    assert np.array_equal(done.results[3].codes, expected.codes) and not np.array_equal(
        done.results[2].codes, expected.codes
    )
    assert (tmp_path / "cat-4.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert expected.metadata["prompt"] == "a blue circle<image>"
    assert json.loads(expected.metadata["prompt_images"]) == [hashlib.sha256(run.wide.read_bytes()).hexdigest()]
    # The ratio is that of the prompt's image where none is asked for.
    assert [result.grids[-1] for result in done.results] == [
        image_grids_of(128, r)[-1] for r in (20 / 6, 20 / 6, 5 / 9, 5 / 9)
    ]
    files = sorted(path.name for path in (tmp_path / "scales").iterdir())
    assert files == [f"cat-{k}-scale-{scale:02d}.png" for k in (1, 2, 3, 4) for scale in range(1, 9)]
    assert sorted(done.previews) == [tmp_path / "scales" / name for name in files]
    last = Image.open(tmp_path / "scales" / "cat-4-scale-08.png")
    assert np.array_equal(np.asarray(last), np.asarray(Image.open(tmp_path / "cat-4.png")))
    sheet = run.request("a", out=tmp_path / "a.png", settings=GenerateConfig(level=128), preview=tmp_path / "sheet.png")
    generate(sheet)
    assert Image.open(tmp_path / "sheet.png").width > 8 * 128


def test_an_image_in_the_prompt_enters_as_its_nearest_codes(run: Run) -> None:
    """The first words after it are those of a whole pass over the same document, put together here."""
    found = generate(run.request("a red square <image>", run.tall, settings=GenerateConfig(max_tokens=5, top_k=1)))
    tokenizer, text = VisionTokenizer.load(run.vision), TextTokenizer.load(run.text)
    schedule = grids(canonical_final((116, 32), 8), 8)
    codes = tokenizer.encode(to_pixels([fit(Image.open(run.tall), schedule[-1])]), schedule).target[0].numpy()
    model, state = load_model(run.step, "cpu")
    ids: tuple[int, ...] = ()
    parts = [TextPart(tuple(text.encode("a red square"))), ImagePart(schedule, codes)]
    with torch.no_grad():
        for _ in range(5):
            batch = collate([layout_of([*parts, TextPart(ids)], model.vocabulary, 64.0)])
            logits = model(batch, BlockRangeParams.of(batch.visible))[-1, 0, : state.text_vocabulary]
            ids = (*ids, int(logits.argmax()))
    stop = ids.index(text.eod_id) if text.eod_id in ids else 5
    assert found.results[0].text == text.decode(ids[:stop]) and text.decode(ids[:stop])


def test_text_with_images_is_a_folder_in_order(run: Run, tmp_path: Path) -> None:
    """A model that is made to draw ⟨boi⟩ often enough by a high temperature of words."""
    settings = GenerateConfig(text_temperature=50, text_top_p=1, max_tokens=300, max_images=1, seed=1)
    asked = {"out": tmp_path / "story", "interleaved": True, "settings": settings}
    (result,) = generate(run.request("a <image> & <b>", run.wide, **asked)).results
    record = json.loads((tmp_path / "story" / "result.json").read_text(encoding="utf-8"))
    assert [list(piece) for piece in record["prompt"]] == [["text"], ["image"], ["text"]]
    assert [list(piece) for piece in record["result"]] == [["text"], ["image"], ["text"]]
    assert record["ended"] == result.ended == "max_tokens" or record["ended"] == "end of text"
    shown = "".join(piece.get("text", "<image>") for piece in record["result"])
    assert shown == result.text and record["metadata"] == result.metadata
    assert Image.open(tmp_path / "story" / "result-1.png").size == result.pieces[1].size  # type: ignore[union-attr]
    assert Image.open(tmp_path / "story" / "prompt-1.png").size == (90, 50)
    page = (tmp_path / "story" / "index.html").read_text(encoding="utf-8")
    places = [page.index(word) for word in ("prompt-1.png", "&amp; &lt;b&gt;", "result-1.png")]
    assert places == sorted(places)


def test_a_checkpoint_continues_texts(run: Run) -> None:
    request = Request(
        run.output, parse_prompts(["the quick", "a"]), settings=GenerateConfig(max_tokens=5), n=2, device="cpu"
    )
    done = generate(request)
    assert len(done.results) == 4 and all(result.text is not None and result.image is None for result in done.results)
    (alone,) = generate(run.request("a", settings=GenerateConfig(max_tokens=5, seed=1))).results
    assert done.results[3].text == alone.text and done.passes <= 5


def test_tokenizers_that_are_not_the_checkpoints_are_refused(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    train_bpe([*WORDS, "another text altogether altogether"], TextTokenizerConfig(vocab_size=300), other)
    with pytest.raises(GenerationError, match=r"the text tokenizer at .* was trained with"):
        generate(run.request("a", text_tokenizer=other))
    changed = tmp_path / "vision"
    shutil.copytree(run.vision, changed)
    config = changed / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(GenerationError, match=r"the vision tokenizer at .* was trained with"):
        generate(run.request("a", out=tmp_path / "x.png", vision_tokenizer=changed))
    with pytest.raises(FileNotFoundError, match="is not a vision tokenizer"):
        generate(run.request("a", out=tmp_path / "x.png", vision_tokenizer=tmp_path))
    assert not (tmp_path / "x.png").exists()


def test_requests_that_cannot_be_met_are_refused_before_the_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_nextflow.generation.generator.load_model", lambda *_: pytest.fail("the model was loaded"))
    out, broken, huge, folder = (tmp_path / name for name in ("x.png", "broken.png", "huge.png", "folder.png"))
    broken.write_bytes(b"\x89PNG nothing")
    folder.mkdir()
    with huge.open("wb") as stream:
        stream.truncate(80 << 20)
    refused: list[tuple[str, Callable[[], Request]]] = [
        ("level 256 is not one of", lambda: run.request("a", out=out, settings=GenerateConfig(level=256))),
        ("level 256 is not one of", lambda: run.request("<image>", run.wide, settings=GenerateConfig(prompt_level=256))),
        ("trained on sequences of 700", lambda: run.request("square " * 700, out=out)),
        ("trained on sequences of 700", lambda: run.request("<image>" * 3, run.wide, run.wide, run.wide, out=out)),
        ("trained on sequences of 700", lambda: run.request("a", settings=GenerateConfig(max_tokens=700))),
        ("trained on sequences of 700", lambda: run.request("<image>" * 3, *[run.wide] * 3, out=out, interleaved=True)),
        ("2 <image> for 1 images", lambda: run.request("<image> and <image>", run.wide)),
        ("0 <image> for 1 images", lambda: run.request("a cat", run.wide)),
        ("nowhere.png cannot be read", lambda: run.request("<image>", tmp_path / "nowhere.png")),
        ("broken.png cannot be read: unsupported-format", lambda: run.request("<image>", broken)),
        ("huge.png cannot be read: image-too-large: 67108865 bytes", lambda: run.request("<image>", huge)),
        ("is not in UTF-8", lambda: run.request("caf\udce9", out=out)),
        ("folder.png is a folder: name the PNG", lambda: run.request("a", out=folder)),
        ("x-1.png, not .*x-1.jpg", lambda: run.request("a", out=tmp_path / "x.jpg", n=2)),
        ("huge.png is no folder, or not yours", lambda: run.request("a", out=huge / "new" / "x.png")),
        ("folder.png exists and is not written over", lambda: run.request("a", out=folder, interleaved=True)),
        ("story cannot be written: .*huge.png is no folder", lambda: run.request("a", out=huge / "story", interleaved=True)),
        ("name what is to be written", lambda: run.request("a", out=Path("."))),
        ("the image itself goes", lambda: run.request("a", out=out, preview=out)),
        ("folder.png is a folder", lambda: run.request("a", out=out, preview=folder)),
        ("tokenizer.json exists and is not", lambda: run.request("a", out=out, preview=run.text)),
        ("at least a word or an image", lambda: run.request("")),
        ("at least a word or an image", lambda: run.request("", out=out, interleaved=True)),
        ("written to a folder", lambda: run.request("a", interleaved=True)),
        ("previews show an image", lambda: run.request("a", preview=tmp_path)),
        ("at least one prompt", lambda: Request(run.output, ())),
        ("at least one prompt", lambda: run.request("a", n=0)),
        ("neither a checkpoint folder nor a training", lambda: run.request("a", checkpoint=tmp_path)),
    ]
    for message, ask in refused:
        with pytest.raises(GenerationError, match=message):
            generate(ask())
    shutil.copytree(run.step, tmp_path / "alone" / "checkpoints" / "step-00000001")
    with pytest.raises(GenerationError, match="give its path"):
        generate(run.request("a", checkpoint=tmp_path / "alone" / "checkpoints" / "step-00000001"))
    texts = CheckpointManifest(state=read_manifest(run.step).state.model_copy(update={"vision_tokenizer": ""}), files={})
    (tmp_path / "manifest.json").write_text(texts.model_dump_json(), encoding="utf-8")
    alone: dict[str, Any] = {"checkpoint": tmp_path, "text_tokenizer": run.text}
    for request in (run.request("a", out=out, **alone), run.request("<image>", run.wide, **alone)):
        with pytest.raises(GenerationError, match="trained on texts alone"):
            generate(request)
    assert not out.exists()


def test_a_checkpoint_may_be_named_in_any_way(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.step)
    end = plan(run.request("a", checkpoint=Path("."), settings=GenerateConfig(end_of_text="a"))).text.eod_id
    assert end == TextTokenizer.load(run.text, "a").eod_id != TextTokenizer.load(run.text).eod_id
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000007\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"latest names step-00000007, which has no manifest\.json"):
        generate(run.request("a", checkpoint=tmp_path))


def test_a_damaged_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "step-00000001"
    shutil.copytree(run.step, copy)
    victim = max((copy / "megatron").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match=victim.name):
        generate(run.request("a", checkpoint=copy, text_tokenizer=run.text))


def test_the_module_runs_in_a_process_of_its_own(run: Run, tmp_path: Path) -> None:
    """Also that nothing imports megatron.core before the device is set up, which this process cannot show."""
    command = [sys.executable, "-m", "megatron_nextflow.generate", str(run.output)]
    given = ["a <image>", "the quick <image>", "--image", run.wide, "--image", run.tall, "--out", tmp_path / "made.png"]
    settings = GenerateConfig(top_k=(3, 2), guidance=0)
    done = subprocess.run(
        [*command, *given, "--settings", settings.model_dump_json()], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    here = generate(run.request("the quick <image>", run.tall, out=tmp_path / "here.png", settings=settings))
    assert [entry["path"] for entry in found["results"]] == [str(tmp_path / f"made-{k}.png") for k in (1, 2)]
    assert (tmp_path / "made-2.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    first = {name: found[name] for name in ("path", "text", "width", "height", "images", "ended", "metadata")}
    assert first == found["results"][0] and found["passes"] == 16 and found["flops"] > here.flops


def test_the_verb_hands_everything_on_and_shows_every_result(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mnf generate` with the process it would start run in this one; settings left out are the recipe's of the training."""

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "megatron_nextflow.generate"]
        with redirect_stdout(io.StringIO()) as out:
            main([*command[3:6], "--device=cpu", *command[6:]])
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    monkeypatch.setattr(generation.subprocess, "run", here)
    recipe = {"generate": {"prompt": "a", "top_k": [3, 2], "guidance": 0, "seed": 1}}
    recipe["text_tokenizer"] = {"end_of_text": GenerateConfig().end_of_text}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    given: dict[str, Any] = {"images": [run.wide, run.tall], "interleaved": False, "n": 2, "batch": 3, "files": {}}
    out = tmp_path / "x.png"
    generate_from_run(
        RunPlace(tmp_path, tmp_path),
        run.step,
        ["-a <image>", "<image> b"],
        out,
        **given,
        aspect="2:1",
        seed=None,
        top_p="1,0.9",
    )
    said = json.loads(Image.open(tmp_path / "x-4.png").text["settings"])  # type: ignore[attr-defined]
    assert said == GenerateConfig.of(
        {"top_k": [3, 2], "guidance": 0, "seed": 2, "aspect": 0.5, "top_p": [1, 0.9]}
    ).model_dump(mode="json")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"{tmp_path / f'x-{k}.png'}: 176×96 pixels" for k in (1, 2, 3, 4)]
    assert "16 forward passes" in shown.err
    given |= {"images": [], "n": 1}
    generate_from_run(RunPlace(tmp_path, tmp_path), run.step, ["the quick"], None, **given, max_tokens=3)
    expected = generate(run.request("the quick", settings=GenerateConfig.of({"top_k": [3, 2], "seed": 1, "max_tokens": 3})))
    assert capsys.readouterr().out == f"the quick{expected.results[0].text}\n"
    with pytest.raises(SystemExit, match="2"):
        generate_from_run(RunPlace(tmp_path, tmp_path), run.step, [""], None, **given)
    assert capsys.readouterr().err.startswith("text needs a prompt")
