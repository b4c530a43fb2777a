"""`mnf tokenizer` as a person uses it: train by a recipe, evaluate, export, look at one image, and its mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from nextflow_orchestration.cli import app
from nextflow_tokenize.vision.identity import identity
from PIL import Image
from typer.testing import CliRunner, Result

Mnf = Callable[..., Result]


@pytest.fixture(scope="module")
def mnf() -> Mnf:
    return lambda *arguments: CliRunner().invoke(app, ["tokenizer", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mnf: Mnf) -> tuple[Path, Path, Result]:
    """The images' folder, the output's, and what was said."""
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(5):
        coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        size = [(280, 270), (150, 140), (300, 130)][number % 3]
        coarse.resize(size, Image.Resampling.BICUBIC).save(root / "images" / f"{number}.png")
    recipe = {
        "name": "cli", "output": str(root / "out"), "images": [str(root / "images")],
        "vision_tokenizer": {
            "levels": [128, 256], "codebook_size": 32, "channels": 8, "decoder_channels": 8, "semantic_channels": 8,
            "training": {"steps": 9, "batch_tokens": 64, "micro_batches": 2, "precision": "float32"},
        },
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = mnf("train", root / "recipe.yaml", "--set", "vision_tokenizer.training.steps=4")
    return root / "images", root / "out", said


def test_training_says_what_came_of_it(trained, mnf) -> None:  # type: ignore[no-untyped-def]
    images, out, said = trained
    assert said.exit_code == 0, said.output
    assert "✓ train: 4 steps" in said.output and "held out" in said.output and "mnf tokenizer roundtrip" in said.output
    assert (out / "tokenizer" / "held_out.png").is_file()
    again = mnf("train", images.parent / "recipe.yaml", "--set", "vision_tokenizer.training.steps=4")
    assert again.exit_code == 0 and "train: kept" in again.output
    other = mnf("train", images.parent / "recipe.yaml")
    assert other.exit_code == 2 and "trained with other settings" in other.output


@pytest.mark.slow
def test_two_processes_from_the_command_line(trained, mnf, tmp_path) -> None:  # type: ignore[no-untyped-def]
    images, _, _ = trained
    said = mnf(
        "train", images.parent / "recipe.yaml", "--set", f"output={tmp_path / 'two'}", "--processes", 2, "--device", "cpu"
    )
    assert said.exit_code == 0, said.output
    assert (tmp_path / "two" / "tokenizer" / "weights.safetensors").is_file()
    odd = mnf("train", images.parent / "recipe.yaml", "--set", f"output={tmp_path / 'three'}", "--processes", 3)
    assert odd.exit_code == 2 and "cannot be" in odd.output and not (tmp_path / "three").exists()


def test_evaluation_by_level_and_ratio(trained, mnf, tmp_path) -> None:  # type: ignore[no-untyped-def]
    images, out, _ = trained
    said = mnf("eval", out / "tokenizer", images, "--out", tmp_path / "eval")
    assert said.exit_code == 0, said.output
    assert "PSNR dB" in said.output and "codes in use" in said.output
    content = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert content["tokenizer"] == identity(out / "tokenizer")
    # All five fill level 128; those of 280×270, and 300×130 at 1.28 times its size, level 256 as well.
    levels = {(group["scales"], group["images"]) for group in content["groups"] if group["grid"] is None}
    assert levels == {(8, 5), (12, 3)}
    assert all(0 < group["ssim"] <= 1 and group["psnr"] > 0 and group["lpips"] is None for group in content["groups"])
    assert sum(group["images"] for group in content["groups"] if group["grid"] is not None) == 8
    table = (tmp_path / "eval" / "evaluation.md").read_text()
    assert "| 256 | all | 3 |" in table and "| never chosen |" in table
    assert Image.open(tmp_path / "eval" / "sheet.png").width > 500
    only = mnf("eval", out / "tokenizer", images, "--level", 256)
    assert only.exit_code == 0 and "128" not in only.output.split("codebook")[0].replace("0.128", "")
    wrong = mnf("eval", out / "tokenizer", images, "--level", 512)
    assert wrong.exit_code != 0 and "not trained" in wrong.output


def test_a_round_trip_is_one_png(trained, mnf, tmp_path) -> None:  # type: ignore[no-untyped-def]
    images, out, _ = trained
    image = tmp_path / "mine.png"
    Image.open(images / "0.png").save(image)
    said = mnf("roundtrip", image, "--tokenizer", out / "tokenizer")
    assert said.exit_code == 0, said.output
    sheet = Image.open(tmp_path / "mine-roundtrip.png")
    # The original, all 12 scales, and after 1, 2, 4 and 8.
    assert sheet.width == 6 * 260 + 4
    assert mnf("roundtrip", image, "--tokenizer", out / "tokenizer", "--level", 512).exit_code != 0
    assert "name another folder with --root" in mnf("roundtrip", image, "--root", tmp_path).output
    (tmp_path / "bad.png").write_bytes(b"nothing")
    bad = mnf("roundtrip", tmp_path / "bad.png", "--tokenizer", out / "tokenizer")
    assert bad.exit_code != 0 and not (tmp_path / "bad-roundtrip.png").exists()


def test_export_of_a_finished_stage(trained, mnf, tmp_path) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = trained
    said = mnf("export", out / "1-train", "--out", tmp_path / "exported")
    assert said.exit_code == 0, said.output
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == ["config.json", "weights.safetensors"]
    assert identity(tmp_path / "exported") == identity(out / "tokenizer")
    assert mnf("export", out / "1-train", "--out", tmp_path / "exported").exit_code != 0
    assert mnf("export", tmp_path, "--out", tmp_path / "none").exit_code == 2


def test_mistakes_stop_at_once(trained, mnf, tmp_path) -> None:  # type: ignore[no-untyped-def]
    images, _, _ = trained
    recipe = images.parent / "recipe.yaml"
    for change, says in (
        ("vision_tokenizer.training.stepz=3", "did you mean 'steps'"),
        ("images=/nowhere/*.png", "/nowhere"),
        ("vision_tokenizer.network=vqgan", "must be 16"),
        ("vision_tokenizer.training.perceptual=lpips", "lpips_path"),
    ):
        said = mnf("train", recipe, "--set", f"output={tmp_path / 'out'}", "--set", change)
        assert said.exit_code == 2, said.output
        assert says in said.output
        assert not list((tmp_path / "out").glob("*-*")) if (tmp_path / "out").exists() else True
