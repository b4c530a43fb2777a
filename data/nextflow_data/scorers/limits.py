"""What of a request is let through, so that no scorer meets a bomb: lengths, and pixels by the header, before any is
decoded.

Lengths are looked at before a request is sent, headers where it is answered, so that only the far end needs Pillow.
"""

from __future__ import annotations

import io
import warnings

from nextflow_data.images.sniff import sniff_image
from nextflow_data.scorers.config import MIB, ScorerConfig
from nextflow_data.scorers.protocol import Question, canonical

MAX_TEXT_BYTES = 4 * MIB
"""Most that text, reference text and extra may take together, as ASCII JSON in bytes; ours."""


def max_body(config: ScorerConfig) -> int:
    """Longest body of a request that keeps these limits, in bytes: two images in base64, texts, and the keys."""
    return 2 * ((config.max_image_bytes + 2) // 3 * 4) + MAX_TEXT_BYTES + 1024


def too_long(request: Question, config: ScorerConfig) -> str | None:
    """Which part of a request is too long, in words; None: none."""
    for image in _images(request):
        if len(image) > config.max_image_bytes:
            return f"an image of {len(image)} bytes; at most {config.max_image_bytes} are taken (max_image_bytes)"
    reference = request.reference if isinstance(request.reference, str) else None
    texts = len(canonical([request.text, reference, request.extra]))
    return f"texts and extra of {texts} bytes; at most {MAX_TEXT_BYTES} are taken" if texts > MAX_TEXT_BYTES else None


def not_to_be_opened(request: Question, config: ScorerConfig) -> str | None:
    """Why an image of a request may not be decoded, in words; None: all may. Needs Pillow where there is an image."""
    return next((problem for image in _images(request) if (problem := _image_problem(image, config))), None)


def _images(request: Question) -> list[bytes]:
    return [image for image in (request.image, request.reference) if isinstance(image, bytes)]


def _image_problem(image: bytes, config: ScorerConfig) -> str | None:
    kind = sniff_image(image)
    if kind is None:
        return f"no image: it begins with {image[:8].hex() or 'nothing'}"
    try:
        from PIL import Image as Pillow
    except ImportError:
        return "an image, and no Pillow to look at its header: install pillow where the scorer runs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            width, height = Pillow.open(io.BytesIO(image), formats=[kind.partition("/")[2].upper()]).size
        except Pillow.DecompressionBombError as error:
            return f"too many pixels: {error}"
        except Exception as error:  # Pillow's plugins raise SyntaxError, ValueError, IndexError, struct.error… on bad files
            return f"a damaged {kind}: {str(error).partition(' <_io')[0]}"
    if width * height > config.max_image_pixels:
        return f"an image of {width}x{height} pixels; at most {config.max_image_pixels} are taken (max_image_pixels)"
    return None
