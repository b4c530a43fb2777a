"""Images: what is refused before it can do harm, and measures with answers known from their definitions."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from nextflow_data.config import IngestConfig
from nextflow_data.images.measure import ImageRejected, measure, open_rgb, perceptual_hash
from PIL import Image

CONFIG = IngestConfig()


def encode(image, form="PNG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def bomb(width, height):
    """A PNG of some hundred bytes whose header claims width×height and whose data go on."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = zlib.compress(b"\x00" * 1_000_000, 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (8001, 8000)])
def test_decompression_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(ImageRejected) as error:
        measure(bomb(width, height), CONFIG)
    assert error.value.reason == "too-many-pixels"


def test_image_of_1_by_10000_is_measured():
    found = measure(encode(Image.new("RGB", (1, 10_000), "red")), CONFIG)
    assert (found["width"], found["height"], found["sharpness"]) == (1, 10_000, 0)
    assert open_rgb(encode(Image.new("RGB", (10_000, 1))), CONFIG, 256).size == (256, 1)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty-image"),
        (b"not an image", "unsupported-format"),
        (b"<html>404</html>", "unsupported-format"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported-format"),
        (b"%PDF-1.7", "unsupported-format"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "undecodable"),
    ],
)
def test_what_is_no_image(payload, reason):
    with pytest.raises(ImageRejected) as error:
        measure(payload, CONFIG)
    assert error.value.reason == reason


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_images_are_refused(form, build):
    payload = encode(Image.open(io.BytesIO(build.png(200, 200))), form)
    assert measure(payload, CONFIG)["format"] == form.lower()
    with pytest.raises(ImageRejected) as error:
        measure(payload[: len(payload) // 2], CONFIG)
    assert error.value.reason in ("truncated-image", "undecodable", "unsupported-format")


def test_file_size_limit():
    with pytest.raises(ImageRejected) as error:
        measure(encode(Image.new("RGB", (64, 64))), IngestConfig(max_image_bytes=10))
    assert error.value.reason == "image-too-large"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)), (127.5, 127.5, 127.5)),
        (Image.new("P", (4, 4), 0), (0, 0, 0)),
    ],
)
def test_modes_become_rgb(image, expected):
    found = np.asarray(open_rgb(encode(image), CONFIG), dtype=float).reshape(-1, 3)
    assert np.abs(found - expected).max() <= 0.5


def test_cmyk_jpeg_and_palette_transparency():
    cmyk = open_rgb(encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"), CONFIG)
    assert np.asarray(cmyk).min() > 250
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([0] * 9 + [200, 0, 0])
    assert np.asarray(open_rgb(encode(palette, transparency=3), CONFIG)).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    """EXIF 2.3 table: where the corner that is stored first must be shown."""
    stored = Image.new("RGB", (60, 40), "white")
    stored.paste("black", (0, 0, 20, 14))
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = encode(stored, "JPEG", quality=95, exif=exif)
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    found = measure(payload, CONFIG)
    assert (found["width"], found["height"]) == ((60, 40) if orientation < 5 else (40, 60))
    for side in (None, 30):
        grey = np.asarray(open_rgb(payload, CONFIG, side).convert("L"), dtype=float)
        h, w = grey.shape
        corners = {"tl": grey[: h // 4, : w // 4], "tr": grey[: h // 4, -w // 4 :], "bl": grey[-h // 4 :, : w // 4]}
        corners["br"] = grey[-h // 4 :, -w // 4 :]
        assert min(corners, key=lambda name: corners[name].mean()) == corner


def test_measures_known_by_definition():
    flat = measure(encode(Image.new("RGB", (64, 64), (120, 120, 120))), CONFIG)
    assert (flat["entropy"], flat["sharpness"], flat["edge_density"], flat["colourfulness"]) == (0, 0, 0, 0)
    halves = np.zeros((64, 64, 3), dtype=np.uint8)
    halves[:, 32:] = 255
    found = measure(encode(Image.fromarray(halves)), CONFIG)
    assert found["entropy"] == pytest.approx(1.0)
    assert found["edge_density"] == pytest.approx(2 / 64, abs=1e-6)  # the two columns beside the border
    # Laplacian: ±255 in those two columns, 0 elsewhere: mean 0, variance 255²·2/64
    assert found["sharpness"] == pytest.approx(255**2 * 2 / 64)
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None], 3, axis=2)
    assert measure(encode(Image.fromarray(levels)), CONFIG)["entropy"] == pytest.approx(8.0)
    # Hasler and Süsstrunk on half red, half blue: rg = 255 or 0, yb = 127.5 or -255
    two = np.zeros((64, 64, 3), dtype=np.uint8)
    two[:32, :, 0], two[32:, :, 2] = 255, 255
    rg, yb = np.array([255.0, 0.0]), np.array([127.5, -255.0])
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert measure(encode(Image.fromarray(two)), CONFIG)["colourfulness"] == pytest.approx(expected, rel=1e-4)
    assert found["sha256"] == hashlib.sha256(encode(Image.fromarray(halves))).hexdigest()


def test_perceptual_hash_of_a_pattern_computed_by_hand(build):
    """The hash's bits from the DCT's definition, summed out."""
    image = open_rgb(build.png(32, 32, seed=3), CONFIG)
    grey = np.asarray(image.convert("L"), dtype=float)
    n = np.arange(32)
    basis = np.cos(np.pi * (2 * n[None, :] + 1) * n[:8, None] / 64)
    scale = np.where(np.arange(8) == 0, np.sqrt(1 / 32), np.sqrt(2 / 32))
    low = (scale[:, None] * scale[None, :] * (basis @ grey @ basis.T)).ravel()
    bits = low > np.median(low[1:])
    assert perceptual_hash(image) == f"{int(''.join('1' if b else '0' for b in bits), 2):016x}"


def test_perceptual_hash_survives_scaling_and_recompression(build):
    image = Image.open(io.BytesIO(build.png(320, 240, seed=1)))
    original = int(measure(build.png(320, 240, seed=1), CONFIG)["phash"], 16)
    for changed in (encode(image.resize((160, 120)), "JPEG", quality=60), encode(image.resize((500, 375)), "WEBP")):
        assert (original ^ int(measure(changed, CONFIG)["phash"], 16)).bit_count() <= 6
    other = int(measure(build.png(320, 240, seed=2), CONFIG)["phash"], 16)
    assert (original ^ other).bit_count() > 12


def test_flat_images_have_one_hash():
    hashes = {perceptual_hash(Image.new("RGB", (50 + n, 60), (n, n, n))) for n in (1, 50, 128, 254)}
    assert len(hashes) == 1


def test_bounded_copy_and_determinism(build):
    payload = build.png(900, 300)
    assert open_rgb(payload, CONFIG, 300).size == (300, 100)
    assert open_rgb(payload, CONFIG).size == (900, 300)
    assert measure(payload, CONFIG) == measure(payload, CONFIG)
