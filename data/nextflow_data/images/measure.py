"""Opens images safely and measures each once.

Everything a header claims is checked before a pixel is decoded: a bomb of 50,000×50,000 pixels costs 30 bytes of reading.
Measures are taken on a copy of bounded size, so that they are comparable between images and cheap; sharpness of a huge
photograph and of its thumbnail then mean the same thing. First frames stand for animations; vector drawings are not read.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from typing import Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError
from scipy import fft

from nextflow_data.config import IngestConfig
from nextflow_data.document import Image, Ref
from nextflow_data.images.sniff import sniff_image
from nextflow_data.records import Unusable

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""Decoders that are ever tried: each one more is attack surface."""

RejectReason = Literal[
    "empty-image", "image-too-large", "unsupported-format", "too-many-pixels", "undecodable", "truncated-image"
]
"""Why an image cannot be used; the set is closed."""

EDGE_THRESHOLD = 64.0
"""Sobel gradient magnitude (grey levels a pixel, kernel sum 8: divided by 4) from which a pixel is an edge; our choice."""


class ImageMeasures(TypedDict):
    """`width` and `height` in pixels as shown (orientation applied); `phash` 16 hex digits, a 64-bit DCT hash; `sharpness`
    the variance of the Laplacian of the grey levels; `entropy` in bits, 0…8; `edge_density` the share of edge pixels, 0…1;
    `colourfulness` after Hasler and Süsstrunk 2003, 0 for grey, some 100 for garish."""

    sha256: str
    format: str
    width: int
    height: int
    phash: str
    sharpness: float
    entropy: float
    edge_density: float
    colourfulness: float


class ImageRejected(Unusable):
    """An image that cannot be used: `reason` of the closed set RejectReason, `detail` in words."""

    def __init__(self, reason: RejectReason, detail: str = "") -> None:
        assert reason in get_args(RejectReason)
        super().__init__(reason, detail)


def open_rgb(payload: bytes, config: IngestConfig, max_side: int | None = None) -> Pillow.Image:
    """The image in `payload` as 8-bit RGB, upright, transparency over white; shrunk to `max_side` pixels if it is larger.

    Raises ImageRejected.
    """
    if max_side is None:
        return _decode(payload, config)[0]
    image, _, size = _decode(payload, config, 2 * max_side)
    return _shrunk(image, size, max_side)


def measure(payload: bytes, config: IngestConfig) -> ImageMeasures:
    """Measures the image in `payload`. Raises ImageRejected."""
    image, name, (width, height) = _decode(payload, config, config.measure_side)
    grey = _shrunk(image.convert("L"), (width, height), config.measure_side)
    # Grey levels with the border repeated once: what follows counts in whole numbers, so that it is the same everywhere.
    levels = np.pad(np.asarray(grey), 1, mode="edge").astype(np.int16)
    return {
        "sha256": hashlib.sha256(payload).hexdigest(),
        "format": name,
        "width": width,
        "height": height,
        "phash": perceptual_hash(grey),
        "sharpness": round(_sharpness(levels), 6),
        "entropy": round(_entropy(grey), 6),
        "edge_density": round(_edge_density(levels), 6),
        "colourfulness": round(_colourfulness(image.reduce(-(-max(image.size) // config.measure_side))), 6),
    }


def measured_image(ref: Ref, address: str | None, payload: bytes, config: IngestConfig) -> Image:
    """An image node's content without words: alt and caption come from the document that shows it. Raises ImageRejected."""
    return image_of(ref, address, measure(payload, config))


def image_of(ref: Ref, address: str | None, measured: ImageMeasures) -> Image:
    """`measured_image` of what was measured before."""
    return {"ref": ref, "address": address, **measured, "alt": None, "caption": None, "captioner": None}


def try_measure(payload: bytes, config: IngestConfig) -> ImageMeasures | tuple[str, str]:
    """`measure`, or reason and detail why not."""
    try:
        return measure(payload, config)
    except ImageRejected as error:
        return error.reason, error.detail


def perceptual_hash(image: Pillow.Image) -> str:
    """The 64-bit DCT hash of `image` as 16 hex digits: the 8×8 lowest frequencies of a 32×32 grey thumbnail, each bit saying
    whether its coefficient is above their median (Zauner 2010, §3.2.1). Near-equal images differ in few bits."""
    grey = np.asarray(image.convert("L").resize((32, 32), Pillow.Resampling.LANCZOS, reducing_gap=3.0), dtype=np.float64)
    low = fft.dctn(grey, type=2, norm="ortho")[:8, :8].ravel()
    # A flat image has only rounding noise beside its mean: its bits must not be drawn by lot.
    bits = np.where(np.abs(low) < 1e-6, 0.0, low) > np.median(low[1:]) + 1e-9
    return np.packbits(bits).tobytes().hex()


def _shrunk(image: Pillow.Image, shown: tuple[int, int], max_side: int) -> Pillow.Image:
    """An image that is `shown` in that size, with its longer side at most `max_side`."""
    if max(image.size) <= max_side:
        return image
    scale = max_side / max(shown)
    size = (max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale)))
    return image.resize(size, Pillow.Resampling.LANCZOS, reducing_gap=3.0)


def _decode(
    payload: bytes, config: IngestConfig, least_side: int | None = None
) -> tuple[Pillow.Image, str, tuple[int, int]]:
    """(RGB image, format in lower case, (width, height) as shown). With `least_side` a JPEG may be decoded smaller, to no
    less than that, which is cheaper by as much."""
    if not payload:
        raise ImageRejected("empty-image")
    if len(payload) > config.max_image_bytes:
        raise ImageRejected("image-too-large", f"{len(payload)} bytes")
    if _is_svg(payload):
        raise ImageRejected("unsupported-format", "svg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Pillow.open(io.BytesIO(payload), formats=FORMATS)
            width, height = image.size
            if width * height > config.max_image_pixels:
                raise ImageRejected("too-many-pixels", f"{width}x{height}")
            name = "jpeg" if image.format == "MPO" else str(image.format).lower()
            orientation = image.getexif().get(0x0112, 1)
            if least_side is not None:
                image.draft("RGB", (least_side, least_side))
            image.load()
            rgb = _to_rgb(image)
            if orientation in range(2, 9):
                rgb = ImageOps.exif_transpose(_with_orientation(rgb, orientation))
                width, height = (height, width) if orientation >= 5 else (width, height)
            return rgb, name, (width, height)
        except ImageRejected:
            raise
        except Pillow.DecompressionBombError as error:
            raise ImageRejected("too-many-pixels", str(error)) from None
        except UnidentifiedImageError:
            known = sniff_image(payload)
            raise ImageRejected("undecodable" if known else "unsupported-format", known or payload[:8].hex()) from None
        except OSError as error:
            reason: RejectReason = "truncated-image" if "truncated" in str(error).lower() else "undecodable"
            raise ImageRejected(reason, str(error)[:200]) from None
        except Exception as error:  # Pillow's plugins raise SyntaxError, ValueError, IndexError, struct.error… on bad files
            raise ImageRejected("undecodable", f"{type(error).__name__}: {error}"[:200]) from None


def _is_svg(payload: bytes) -> bool:
    start = payload[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith(b"<") and b"<svg" in start


def _with_orientation(image: Pillow.Image, orientation: int) -> Pillow.Image:
    image = image.copy()
    image.getexif()[0x0112] = orientation
    return image


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    mode = image.mode
    if mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if mode != "F" else float(np.nanmax(values, initial=0.0))
        scaled = np.nan_to_num(values, nan=0.0, posinf=top, neginf=0.0) / top * 255 if top > 0 else np.zeros_like(values)
        return Pillow.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _entropy(grey: Pillow.Image) -> float:
    counts = np.array(grey.histogram())
    share = counts[counts > 0] / counts.sum()
    return float(abs(-(share * np.log2(share)).sum()))


def _sharpness(levels: npt.NDArray[np.int16]) -> float:
    found = levels[:-2, 1:-1] + levels[2:, 1:-1]
    found += levels[1:-1, :-2]
    found += levels[1:-1, 2:]
    found -= 4 * levels[1:-1, 1:-1]
    return _moments(found)[1]


def _edge_density(levels: npt.NDArray[np.int16]) -> float:
    squares = _slope(levels)
    squares *= squares
    down = _slope(levels.T).T
    down *= down
    squares += down
    return np.count_nonzero(squares > (4 * EDGE_THRESHOLD) ** 2) / squares.size


def _slope(levels: npt.NDArray[np.int16]) -> npt.NDArray[np.int32]:
    """Sobel's along the second axis."""
    smooth = levels[:-2] + levels[2:]
    smooth += levels[1:-1]
    smooth += levels[1:-1]
    return (smooth[:, 2:] - smooth[:, :-2]).astype(np.int32)


def _colourfulness(rgb: Pillow.Image) -> float:
    red, green, blue = (np.asarray(band, dtype=np.int16) for band in rgb.split())
    (rg, rg_spread), (yb, yb_spread) = _moments(red - green), _moments(red + green - 2 * blue)
    return math.sqrt(rg_spread + yb_spread / 4) + 0.3 * math.hypot(rg, yb / 2)


def _moments(values: npt.NDArray[np.int16]) -> tuple[float, float]:
    """Mean and variance. Sums of whole numbers are exact in float64, in whatever order they are taken."""
    flat = values.ravel().astype(np.float64)
    total, squares = int(flat.sum()), int(flat @ flat)
    return total / flat.size, (squares * flat.size - total * total) / flat.size**2
