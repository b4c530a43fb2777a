"""Prompts from a command line, and the schedules that requests name."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from megatron_nextflow.config.generate import GenerationError
from megatron_nextflow.generation.prompt import parse_prompts, picture_grids, read_pictures
from megatron_nextflow.generation.requirements import image_grids_of

A, B, C = Path("a.png"), Path("b.png"), Path("c.png")


def test_images_take_their_places_in_order_over_all_prompts() -> None:
    first, second, third = parse_prompts(["a cat <image> but <image>", " two  words ", "<image>blue"], [A, B, C])
    assert first.parts == ("a cat", A, "but", B) and first.images == (A, B) and first.text == "a cat<image>but<image>"
    assert second.parts == (" two  words ",), "spaces go only beside an image, where documents of training have none"
    assert third.parts == (C, "blue")
    assert parse_prompts([""])[0].parts == ()


@pytest.mark.parametrize(("texts", "images"), [(["<image>"], []), (["a"], [A]), (["<image><image>", "b"], [A])])
def test_as_many_images_as_places(texts: list[str], images: list[Path]) -> None:
    with pytest.raises(GenerationError, match=r"<image> for \d images: write <image> where each is to go"):
        parse_prompts(texts, images)


def test_a_photograph_is_taken_upright(tmp_path: Path) -> None:
    """A camera held upright writes lying pixels and says so (EXIF orientation 6)."""
    photograph = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (160, 40)).save(photograph, exif=exif)
    picture = read_pictures(parse_prompts(["<image>"], [photograph]))[photograph]
    assert picture.image.size == (40, 160) and picture_grids(picture, 256)[-1] == image_grids_of(256, 4.0)[-1] == (32, 8)


@pytest.mark.parametrize(
    ("level", "ratio", "last"), [(128, 1.0, (8, 8)), (256, 0.25, (8, 32)), (1024, 1.0, (64, 64)), (1024, 4.0, (128, 32))]
)
def test_the_schedule_of_a_request(level: int, ratio: float, last: tuple[int, int]) -> None:
    assert image_grids_of(level, ratio)[-1] == last


@pytest.mark.parametrize(("level", "ratio"), [(300, 1.0), (256, 0.0), (256, -1.0), (256, 1e9), (256, float("nan"))])
def test_a_request_outside_the_schedule_is_refused(level: int, ratio: float) -> None:
    with pytest.raises(GenerationError):
        image_grids_of(level, ratio)
