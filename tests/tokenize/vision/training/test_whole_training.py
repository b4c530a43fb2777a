"""Whole trainings by recipe: stages one after the other, several processes, signals, and what is refused."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.config.vision_recipe import TokenizerRecipe
from nextflow_tokenize.vision.identity import identity
from nextflow_tokenize.vision.images.image_index import encoded_images, find, index, unusable
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.training import checkpoints as training_state
from nextflow_tokenize.vision.training.checkpoints import OtherTraining
from nextflow_tokenize.vision.training.whole_training import train_by_recipe
from PIL import Image
from pydantic import ValidationError


def picture(seed, size=(160, 140), format="PNG", **options):
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    coarse.save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(picture(seed, [(160, 140), (140, 160), (300, 130)][seed % 3]))
    return folder


def recipe(images, output, stages=None, **training):
    defaults = {"steps": 10, "batch_tokens": 64, "micro_batches": 2, "held_out": 0.2, "precision": "float32",
                "learning_rate": 2e-3, "warmup_steps": 2}  # fmt: skip
    model = {"levels": [128], "codebook_size": 64, "channels": 8, "decoder_channels": 8, "semantic_channels": 8}
    return {
        "name": "test", "output": str(output), "images": str(images),
        "vision_tokenizer": {**model, "training": defaults | training},
        **({"stages": stages} if stages else {}),
    }  # fmt: skip


THREE = [
    {"name": "pixel", "vision_tokenizer": {"training": {"stage": "pixel"}}},
    {"name": "joint"},
    {"name": "decoder", "vision_tokenizer": {"decoder_channels": 16, "training": {"stage": "decoder", "steps": 5}}},
]


WHOLE = ["-m", "nextflow_tokenize.vision.training.whole_training", "--device", "cpu"]


def program(path, processes=1, what=WHOLE, **options):
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), *what, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "LOGLEVEL": "ERROR"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "step" in line]


def test_three_stages_by_one_recipe_and_again(images, tmp_path):
    given = TokenizerRecipe.model_validate(recipe(images, tmp_path / "out", THREE))
    said, ended = [], []
    outcomes = train_by_recipe(given, say=said.append, finished=ended.append, device="cpu")
    assert [(o.name, o.kept) for o in outcomes] == [
        ("pixel", False),
        ("joint", False),
        ("decoder", False),
    ] and ended == outcomes
    assert (tmp_path / "out" / "tokenizer").resolve() == (tmp_path / "out" / "3-decoder" / "tokenizer").resolve()
    assert VisionTokenizer.load(tmp_path / "out" / "tokenizer").config.decoder_channels == 16
    assert "6 distinct images" in said[-1]
    before = identity(tmp_path / "out" / "tokenizer")
    assert all(outcome.kept for outcome in train_by_recipe(given, device="cpu"))
    assert identity(tmp_path / "out" / "tokenizer") == before
    # What says only how to work may change.
    assert all(
        o.kept
        for o in train_by_recipe(
            TokenizerRecipe.model_validate(recipe(images, tmp_path / "out", THREE, workers=1)), device="cpu"
        )
    )
    changed = TokenizerRecipe.model_validate(recipe(images, tmp_path / "out", THREE, learning_rate=1e-3))
    with pytest.raises(OtherTraining, match="another `output`"):
        train_by_recipe(changed, device="cpu")


def test_two_processes_learn_what_one_learns(images, tmp_path):
    """The same micro-batches, shared out: losses, gradients and codes of each step equal but for a sum's last bits.

    Each step begins at the one process's state: over several, a nearest code would flip on some processor's last bit, and
    what follows that is another training.
    """
    adversarial = {"adversarial_weight": 0.1, "adversarial_start": 4, "discriminator_channels": 8, "gradient_clip": 1e9}
    given = TokenizerRecipe.model_validate(recipe(images, tmp_path / "out", steps=12, micro_batches=4, **adversarial))
    (tmp_path / "config.json").write_text(given.resolved()[0].model_dump_json())
    (tmp_path / "images").symlink_to(images)
    for processes in (1, 2):
        done = program(tmp_path, processes, [str(Path(__file__).with_name("step_by_step.py"))])
        _, errors = done.communicate(timeout=240)
        assert done.returncode == 0, errors
    for step in range(12):
        one, two = (torch.load(tmp_path / f"after-{step}-of-{n}.pt", weights_only=True) for n in (1, 2))
        assert one["metrics"].keys() == two["metrics"].keys() and ("adversarial" in one["metrics"]) == (step >= 4)
        for name, value in one["metrics"].items():
            assert two["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-7), (step, name)
        for name, value in one["state"]["model"].items():
            if name.startswith(("tokenizer.quantizer.", "means.")):
                torch.testing.assert_close(two["state"]["model"][name], value, rtol=1e-5, atol=1e-6, msg=f"{step} {name}")
        # Adam's first moments are the gradients, and linear in them, which the weights it moves are not.
        for optimizer in ("optimizer", "against"):
            for number, moments in one["state"][optimizer]["state"].items():
                expected, found = moments["exp_avg"], two["state"][optimizer]["state"][number]["exp_avg"]
                bound = 1e-5 * float(expected.abs().max()) + 1e-9
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=bound, msg=f"{step} {optimizer} {number}")


def test_a_signal_saves_and_any_number_of_processes_goes_on(images, tmp_path):
    content = recipe(images, tmp_path / "out", steps=150, workers=1)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(content))
    work = tmp_path / "out" / "1-train" / "work"
    process = program(path)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 20 " in line:
            break
    os.killpg(process.pid, signal.SIGTERM)  # the loader's process gets it too, as from a scheduler
    assert process.wait(60) == 130
    (checkpoint,) = training_state.found(work)
    reached = int(checkpoint.stem.removeprefix("checkpoint-"))
    assert 20 <= reached < 150
    other = program(path, 2)
    _, errors = other.communicate(timeout=240)
    assert other.returncode == 0, errors
    steps = [line["step"] for line in metrics(tmp_path / "out" / "tokenizer")]
    assert steps == list(range(10, 151, 10)) and not work.exists()


def test_killed_outright_it_goes_on_from_the_last_checkpoint(images, tmp_path):
    content = recipe(images, tmp_path / "killed", steps=40, checkpoint_interval=10)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(content))
    process = program(path)
    work = tmp_path / "killed" / "1-train" / "work"
    until = time.monotonic() + 60
    while not list(work.glob("*.pt")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait(60)
    assert not (tmp_path / "killed" / "1-train" / "tokenizer").exists()
    train_by_recipe(TokenizerRecipe.model_validate(content), device="cpu")
    whole = TokenizerRecipe.model_validate(recipe(images, tmp_path / "whole", steps=40, checkpoint_interval=10))
    train_by_recipe(whole, device="cpu")
    assert identity(tmp_path / "killed" / "tokenizer") == identity(tmp_path / "whole" / "tokenizer")


def test_processes_that_cannot_share_the_work_are_refused(images, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(images, tmp_path / "out", micro_batches=3)))
    process = program(path, 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "cannot be shared out to 2 processes" in errors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stages": [{"name": "a", "vision_tokenizer": {"codebok": 3}}]}, "stage a: codebok: unknown key"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "names of their own"),
        ({"stages": [{"name": "a/b"}]}, "match pattern"),
        ({"stages": [{"name": "d", "vision_tokenizer": {"training": {"stage": "decoder"}}}]}, "put a joint stage before it"),
        ({"vision_tokenizer": {"path": "x"}}, "name one to train on from as init"),
        ({"images": []}, "at least 1"),
    ],
)
def test_wrong_recipes_are_refused_before_any_work(images, tmp_path, change, says):
    with pytest.raises(ValidationError, match=says):
        TokenizerRecipe.model_validate(recipe(images, tmp_path) | change)


def test_weights_of_a_later_stage_are_looked_for_before_the_first(images, tmp_path):
    content = recipe(images, tmp_path / "out", THREE)
    content["stages"][1] = {
        "name": "joint",
        "vision_tokenizer": {"training": {"perceptual": "lpips", "lpips_path": "nowhere"}},
    }
    with pytest.raises(FileNotFoundError, match="lpips_path: nowhere is not a folder"):
        train_by_recipe(TokenizerRecipe.model_validate(content), device="cpu")
    assert not (tmp_path / "out").exists()


def test_weights_count_by_content_and_not_by_place(tmp_path):
    names = []
    for place, payload in (("a", b"weights"), ("b", b"weights"), ("c", b"others")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "vgg16.pth").write_bytes(payload)
        training = {"perceptual": "lpips", "lpips_path": str(tmp_path / place)}
        names.append(training_state.fingerprints(VisionTokenizerConfig.model_validate({"training": training}), [], None))
    assert names[0] == names[1] and not {*names[0]} & {*names[2]}


# --- the index of images ---


def test_images_in_folders_tars_and_files(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.png").write_bytes(picture(1))
    (tmp_path / "deep" / "notes.txt").write_text("no image")
    turned = Image.Exif()
    turned[0x0112] = 6
    with tarfile.open(tmp_path / "deep" / "shard.tar", "w") as archive:
        for name, payload in (
            ("x/1.jpg", picture(2, format="JPEG", exif=turned)), ("x/1.json", b"{}"), ("2.png", picture(1)),
            ("3.png", b"not"),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    table = index([str(tmp_path / "deep")], tmp_path / "index.parquet")
    rows = table.to_pylist()
    assert [row["name"] for row in rows if row["kind"] == "tar"] == ["x/1.jpg", "2.png", "3.png"]
    found = encoded_images(table)
    assert len(found) == 2  # a.png and 2.png are one image
    assert {image.size for image in found} == {(140, 160), (160, 140)}  # the JPEG lies on its side
    assert all(image.load() for image in found)
    assert list(unusable(table)) == [f"{tmp_path / 'deep' / 'shard.tar'} 3.png"]
    changed = time.time() - 100
    assert index([str(tmp_path / "deep")], tmp_path / "index.parquet").equals(table)
    (tmp_path / "deep" / "b.png").write_bytes(picture(3))
    os.utime(tmp_path / "deep" / "b.png", (changed, changed))
    assert len(encoded_images(index([str(tmp_path / "deep")], tmp_path / "index.parquet"))) == 3


def test_a_torn_tar_keeps_what_came_before(tmp_path):
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for number in range(3):
            payload = picture(number)
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "torn.tar").write_bytes(whole[: len(picture(0)) + 1500])
    (tmp_path / "whole.tar").unlink()
    table = index([str(tmp_path)], tmp_path / "index.parquet")
    assert len(encoded_images(table)) == 1
    assert any("torn.tar" in name for name in unusable(table))


def test_nothing_found_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images in"):
        find([str(tmp_path / "*.png")])
    with pytest.raises(FileNotFoundError):
        find([str(tmp_path)])


def test_a_file_that_changed_is_not_taken_for_what_was_indexed(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    (image,) = encoded_images(index([str(tmp_path)], tmp_path / "index.parquet"))
    (tmp_path / "a.png").write_bytes(picture(2))
    with pytest.raises(ValueError, match="has changed"):
        image.load()
