"""What a training process will hold in its device's memory, reckoned before there is a device.

After Korthikanti et al., "Reducing activation recomputation in large transformer models" (2022), §4, with what differs here:
RMSNorm, SwiGLU, grouped queries, no dropout, no attention matrix, and a loss that holds a chunk of logits. Each item's
formula stands at its function, for the longest micro-batch, every slot an image's, every slot labelled. The cost: the
driver's and NCCL's own memory, workspaces of kernels, what the allocator loses between tensors, and the code vectors from
which images are upsampled are not in it, so a device needs some room above the sum. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.sequence.vocabulary import Vocabulary

GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes on one process, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All of it at once, as at the end of the forward pass that fills the pipeline."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate(
    config: TrainConfig, vocabulary: Vocabulary, stage: int, parameters: int, trained: int, copies: int, fp8: bool = False
) -> Memory:
    """The memory of a process of pipeline stage `stage`, which holds `parameters` of which it learns `trained`.

    `copies`: data-parallel size. `fp8`: whether matrices are multiplied in FP8.
    """
    parallel = config.parallel
    micro_batches = config.data.global_batch_size // (copies * config.data.micro_batch_size)
    last = stage == parallel.pp - 1
    return Memory(
        weights=weights(config, parameters, fp8),
        gradients=4 * trained,
        optimizer=optimizer(config, trained, copies),
        activations=activations(config, stage, micro_batches),
        loss=loss(config, vocabulary) if last else 0,
    )


def weights(config: TrainConfig, parameters: int, fp8: bool) -> int:
    """Parameters in the training's precision; under FP8 also each one in FP8 and transposed, as Transformer Engine keeps
    them."""
    return parameters * (_width(config) + (2 if fp8 else 0))


def optimizer(config: TrainConfig, trained: int, copies: int) -> int:
    """Adam's two moments and, beside bf16 weights, the float32 weights; over the data- and context-parallel processes."""
    return trained * (12 if config.precision == "bf16" else 8) // (copies * config.parallel.cp)


def slots_of_a_pass(config: TrainConfig) -> int:
    """Most slots of one micro-batch on one process, before sequence parallelism."""
    return -(-config.data.micro_batch_size * config.model.max_length // config.parallel.cp)


def layer_bytes(config: TrainConfig) -> int:
    """Activations that one layer keeps of one micro-batch for its backward pass, nothing recomputed.

    A slot keeps, in numbers of the training's precision: the inputs of both norms and their results, 4·hidden, over the
    sequence-parallel processes; the rotations of queries and keys, 4·head; the joint query, key and value product, the
    rotated queries and keys, the attention's result and the projection's input, 4·query + 3·key channels, over the
    tensor-parallel processes; the feed-forward's joint gate and up, the activated gate, up once more (Megatron adds an
    offset of 0 to it) and their product, 5·ffn, likewise; under context parallelism everyone's keys and values. And a
    float32 a head for the softmax.
    """
    model, parallel = config.model, config.parallel
    query, key = model.heads * model.head_dim, model.query_groups * model.head_dim
    split = 4 * query + 3 * key + 5 * model.ffn_size + (2 * key * parallel.cp if parallel.cp > 1 else 0)
    numbers = 4 * model.hidden_size / config.parallel.sequence_parts + 4 * model.head_dim + split / parallel.tp
    return round(slots_of_a_pass(config) * (_width(config) * numbers + 4 * model.heads / parallel.tp))


def passes_in_flight(config: TrainConfig, stage: int, micro_batches: int) -> int:
    """Forward passes through a chunk of layers that `stage` has begun and not yet gone back through, at most.

    1F1B: pp − stage. Interleaved (Narayanan et al., 2021, §2.2): 2·(pp − stage − 1) + (vpp − 1)·pp + 1. Never more than the
    step has.
    """
    pp, vpp = config.parallel.pp, config.parallel.vpp
    if vpp == 1:
        return min(micro_batches, pp - stage)
    return min(micro_batches * vpp, 2 * (pp - stage - 1) + (vpp - 1) * pp + 1)


def activations(config: TrainConfig, stage: int, micro_batches: int) -> int:
    """What a pipeline stage keeps for the backward passes of all passes in flight.

    A pass keeps `layer_bytes` a layer and the chunk's output, hidden a slot, until it is sent and gone back through. With
    recomputation it keeps each layer's input alone, and one layer at a time has `layer_bytes` more. The first stage also
    keeps the connector's inside and the sinusoids, 3·hidden a slot, of each micro-batch it has begun (interleaved: of at
    most 2·pp − 1); the last the input and result of the last norm.
    """
    parallel, model = config.parallel, config.model
    hidden = round(slots_of_a_pass(config) * model.hidden_size * _width(config))
    state = hidden // config.parallel.sequence_parts
    passes = passes_in_flight(config, stage, micro_batches)
    layers = model.layers // parallel.chunks
    kept = passes * (layers * (state if config.recompute else layer_bytes(config)) + state)
    again = layer_bytes(config) if config.recompute else 0
    begun = min(micro_batches, 2 * parallel.pp - 1) if parallel.interleaved else passes
    embedding = 3 * hidden * begun if stage == 0 else 0
    norm = 2 * state if stage == parallel.pp - 1 else 0
    return kept + again + embedding + norm


def loss(config: TrainConfig, vocabulary: Vocabulary) -> int:
    """The head's input whole, its labelled slots and their gradient; a chunk's logits; the head's gradient.

    Logits of `loss.chunk` labels over this process's rows: float32, and in bf16 before and after. The head's gradient: the
    float32 sum and a chunk's summand.
    """
    width, hidden = _width(config), config.model.hidden_size
    rows = vocabulary.padded // config.parallel.tp
    slots = slots_of_a_pass(config)
    logits = min(config.loss.chunk, slots) * rows * (4 if width == 4 else 6)
    return 3 * slots * hidden * width + logits + rows * hidden * (4 + width)


def _width(config: TrainConfig) -> int:
    """Bytes of a number."""
    return 2 if config.precision == "bf16" else 4
