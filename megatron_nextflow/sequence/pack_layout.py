"""From a pack's segments to the tensors of one training sequence: inputs, labels, positions, visible ranges, weights.

Everything here follows from the segments, so nothing of it is stored in a shard; a change of the layout needs no new shards.
The cost is work at feeding time, kept small by one cached template per image schedule and no loop over tokens.

One image with K scales, its ⟨boi⟩ at position p (NextFlow, arXiv 2601.02204, section 3 and figure 5):

    slot                     input                                                   predicts           (scale, row, col)
    ⟨boi⟩                    its embedding                                           code of scale 1    (p, p, p)
    scale k=2…K, slot (i,j)  codebook vectors of scale k−1's input codes, upsampled  codes of scale k   (p+k−1, C(i+½)/√(hw), C(j+½)/√(hw))
    ⟨eoi⟩                    its embedding                                           the next text      (p+K, p+K, p+K)

A query sees the slots from its document's first to the last of its own block (one scale of one image, or one token).
"""  # noqa: E501 - the table is clearer whole

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from nextflow_tokenize.schedule import Grid, token_count
from nextflow_tokenize.segments import Segment, image_grids
from numpy.typing import NDArray

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.sequence.vocabulary import Vocabulary

IGNORED = -100
"""Label of a slot that predicts nothing."""


@dataclass(frozen=True)
class ImageInput:
    """What the model is fed of one image: `codes` int64 [Σhw], the input codes of all scales; `slot` is its ⟨boi⟩'s."""

    grids: tuple[Grid, ...]
    codes: NDArray[np.int64]
    slot: int = 0


@dataclass(frozen=True)
class PackLayout:
    """One sequence of L slots as numpy arrays; `used` of them are not padding. Padding slots see themselves only.

    token_ids [L] int64: joint-vocabulary ids; 0 where `is_vision` (the codebook vectors take that place) and in padding.
    labels [L] int64: joint-vocabulary id to predict, or IGNORED. weights [L] float32: 1 for text labels; a scale's weight
    for image labels, such that an image's weights sum to its number of codes, times `vision_weight`; 0 where the label is
    IGNORED.
    scale [L] int64: the scale whose codes the slot predicts: 1 at ⟨boi⟩, k at the slots of scale k, 0 anywhere else.
    num_scales [L] int64: K at those same slots, else 0.
    positions [3, L] float32: (scale or time, row, column). visible [2, L] int32: first visible slot, one past the last.
    images: one a image in the order of slots; the vision slots of the pack are theirs, in order.
    """

    token_ids: NDArray[np.int64]
    is_vision: NDArray[np.bool_]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    scale: NDArray[np.int64]
    num_scales: NDArray[np.int64]
    positions: NDArray[np.float32]
    visible: NDArray[np.int32]
    images: tuple[ImageInput, ...]
    used: int


@dataclass(frozen=True)
class _Template:
    """One image's slots, relative to its ⟨boi⟩: n = Σhw + 1 of them."""

    scale: NDArray[np.int64]
    time: NDArray[np.float32]
    row: NDArray[np.float32]
    column: NDArray[np.float32]
    block_end: NDArray[np.int32]
    weights: NDArray[np.float32]


def scale_weights(grids: tuple[Grid, ...], alpha: float) -> NDArray[np.float64]:
    """Weight of one code of each scale, [K]: proportional to 1/(h·w)^alpha, scaled so that Σ over all codes = Σ h·w.

    Paper section 3, "scale reweight"; the normalisation is our reading of "total vision loss kept constant".
    """
    areas = np.array([h * w for h, w in grids], dtype=np.float64)
    weights = areas**-alpha
    return weights * areas.sum() / (weights * areas).sum()


@lru_cache(maxsize=512)
def _template(grids: tuple[Grid, ...], extent: float, alpha: float) -> _Template:
    count = len(grids)
    if grids[0] != (1, 1):
        raise ValueError(f"the first scale of an image must be 1×1, not {grids[0]}")
    sizes = np.array([1] + [h * w for h, w in grids[1:]] + [1])
    scale = np.repeat([*range(1, count + 1), 0], sizes)
    time = np.repeat(np.arange(count + 1), sizes)
    rows, columns = [np.zeros(1)], [np.zeros(1)]
    for h, w in grids[1:]:
        unit = extent / np.sqrt(h * w)
        rows.append(np.repeat((np.arange(h) + 0.5) * unit, w))
        columns.append(np.tile((np.arange(w) + 0.5) * unit, h))
    rows.append(np.full(1, count))
    columns.append(np.full(1, count))
    template = _Template(
        scale=scale.astype(np.int64),
        time=time.astype(np.float32),
        row=np.concatenate(rows).astype(np.float32),
        column=np.concatenate(columns).astype(np.float32),
        block_end=np.repeat(np.cumsum(sizes), sizes).astype(np.int32),
        weights=np.append(np.repeat(scale_weights(grids, alpha), sizes[:-1]), 0).astype(np.float32),
    )
    for field in fields(template):
        getattr(template, field.name).setflags(write=False)
    return template


def build_pack_layout(
    segments: Sequence[Segment],
    text: NDArray[np.integer],
    input_codes: NDArray[np.integer],
    target_codes: NDArray[np.integer],
    vocabulary: Vocabulary,
    length: int,
    extent: float,
    loss: LossConfig,
) -> PackLayout:
    """The layout of one pack in a sequence of `length` slots, padded at the end.

    `extent`: C of the paper's equation 1 (`ModelConfig.rope_extent`). `loss`: what labels weigh.

    `text`, `input_codes` and `target_codes` are the sample's flat arrays, as the shard has them. Consecutive segments of one
    `doc` are one document: positions restart and nothing is visible across its border. A label counts where the segment that
    holds the predicted token has `loss`. Raises ValueError where segments, arrays, vocabulary or length do not fit together.
    """
    _check(segments, text, input_codes, target_codes, vocabulary)
    layout = empty_layout(length)
    slot = text_at = code_at = 0
    position, start, previous = 0, 0, None
    images: list[ImageInput] = []
    for segment in segments:
        same_document = previous is not None and previous["doc"] == segment["doc"]
        if not same_document:
            position, start = 0, slot
        if segment["kind"] == "text":
            n = segment["tokens"]
            end = _room(slot + n, length)
            ids = text[text_at : text_at + n].astype(np.int64)
            here = slice(slot, end)
            layout.token_ids[here] = ids
            layout.positions[:, here] = np.arange(position, position + n)
            layout.visible[1, here] = np.arange(slot + 1, end + 1)
            if segment["loss"] and n:
                first = slot if same_document else slot + 1
                layout.labels[first - 1 : end - 1] = ids[first - slot :]
                layout.weights[first - 1 : end - 1] = 1.0
            text_at, position = text_at + n, position + n
        else:
            grids = image_grids(segment)
            n = token_count(grids)
            end = _room(slot + n + 1, length)
            codes = slice(code_at, code_at + n)
            template = _template(grids, extent, loss.alpha)
            _place_image(layout, slot, end, position, template, vocabulary)
            if segment["loss"]:
                layout.labels[slot : end - 1] = target_codes[codes].astype(np.int64) + vocabulary.code_offset
                layout.weights[slot:end] = template.weights * loss.vision_weight
                if loss.predict_boi and same_document and previous is not None and previous["kind"] == "text":
                    layout.labels[slot - 1] = vocabulary.boi
                    layout.weights[slot - 1] = 1.0
            images.append(ImageInput(grids, input_codes[codes].astype(np.int64), slot))
            code_at, position = code_at + n, position + len(grids) + 1
        layout.visible[0, slot:end] = start
        if end > slot:
            previous = segment
        slot = end
    return replace(layout, images=tuple(images), used=slot)


def _check(
    segments: Sequence[Segment],
    text: NDArray[np.integer],
    input_codes: NDArray[np.integer],
    target_codes: NDArray[np.integer],
    vocabulary: Vocabulary,
) -> None:
    tokens = sum(s["tokens"] for s in segments if s["kind"] == "text")
    codes = sum(token_count(image_grids(s)) for s in segments if s["kind"] == "image")
    for name, array, expected, limit in (
        ("text", text, tokens, vocabulary.boi),
        ("input", input_codes, codes, vocabulary.size - vocabulary.code_offset),
        ("target", target_codes, codes, vocabulary.size - vocabulary.code_offset),
    ):
        if array.shape != (expected,):
            raise ValueError(f"the segments need {expected} entries of '{name}', the sample has shape {array.shape}")
        if expected and not (int(array.min()) >= 0 and int(array.max()) < limit):
            raise ValueError(f"'{name}' holds ids outside 0..{limit - 1}: {int(array.min())}..{int(array.max())}")


def empty_layout(length: int) -> PackLayout:
    """`length` slots of padding."""
    own = np.arange(length, dtype=np.int32)
    return PackLayout(
        token_ids=np.zeros(length, np.int64),
        is_vision=np.zeros(length, np.bool_),
        labels=np.full(length, IGNORED, np.int64),
        weights=np.zeros(length, np.float32),
        scale=np.zeros(length, np.int64),
        num_scales=np.zeros(length, np.int64),
        positions=np.zeros((3, length), np.float32),
        visible=np.stack([own, own + 1]),
        images=(),
        used=0,
    )


def _room(end: int, length: int) -> int:
    if end > length:
        raise ValueError(f"the pack needs more than {length} slots; raise the sequence length or pack shorter")
    return end


def _place_image(
    layout: PackLayout, slot: int, end: int, position: int, template: _Template, vocabulary: Vocabulary
) -> None:
    here, inner = slice(slot, end), slice(slot + 1, end - 1)
    layout.token_ids[slot], layout.token_ids[end - 1] = vocabulary.boi, vocabulary.eoi
    layout.is_vision[inner] = True
    layout.scale[here] = template.scale
    layout.num_scales[slot : end - 1] = template.scale[-2]
    layout.positions[0, here] = template.time + position
    layout.positions[1, here], layout.positions[2, here] = template.row, template.column
    layout.positions[1:, [slot, end - 1]] += position
    layout.visible[1, here] = template.block_end + slot
