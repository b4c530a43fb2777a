"""Decoding on a GPU: the cache's slices against one whole pass through FlexAttention, and an image drawn in bfloat16.

In a process of its own, because the tests beside it have set this one up for the CPU.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
import torch
from megatron_nextflow.runtime.device import setup
device = setup(sys.argv[1])
from nextflow_tokenize.schedule import grids, token_count
from megatron_nextflow.config.generate import GenerateConfig
from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.generation.cache import CachedModel
from megatron_nextflow.generation.decoding import draw_images
from megatron_nextflow.generation.growing_document import GrowingDocument, ImagePart, TextPart, layout_of
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.model.initialise import initialise
from megatron_nextflow.model.layer_spec import transformer_config
from megatron_nextflow.model.nextflow import NextFlowModel
from megatron_nextflow.sequence.batch import collate
from megatron_nextflow.sequence.vocabulary import Vocabulary
from megatron_nextflow.step.process_groups import start_parallel

shape = ModelConfig(hidden_size=128, layers=3, heads=4, query_groups=2, ffn_size=192, init_std=0.1)
vocabulary, schedule = Vocabulary(40, 24), grids((64, 64), 8)

def model(precision):
    config = TrainConfig(model=shape, precision=precision)
    start_parallel(config)
    built = NextFlowModel(transformer_config(config), shape, vocabulary, torch.randn(24, 6))
    initialise(built.sharded_state_dict(), shape)
    return built.to(device).eval()

exact = model("float32")
codes = np.arange(token_count(schedule)) % 24
prompt = [TextPart((3, 1, 4)), ImagePart(schedule, codes), TextPart((1, 5))]
document = GrowingDocument(prompt, vocabulary, 64.0)
cached = CachedModel(exact, 2, 600)
pieces, window = [], document.begin(schedule)
sizes = [h * w for h, w in schedule]
for drawn in np.split(codes, np.cumsum(sizes)[:-1]):
    pieces.append(cached.feed({1: window})[1])
    window = document.grow(drawn)
found = cached.score(torch.cat(pieces), 0, vocabulary.size)
batch = collate([layout_of([*prompt, ImagePart(schedule, codes)], vocabulary, 64.0)])
with torch.no_grad():
    whole = exact(batch.to(device), BlockRangeParams.of(batch.visible, device))[:-1, 0, : vocabulary.size]
torch.testing.assert_close(found, whole.float(), atol=1e-4, rtol=1e-4)
(drawn,), work = draw_images(model("bf16"), [prompt], schedule, GenerateConfig(), 64.0, [0])
assert drawn.shape == codes.shape and 0 <= drawn.min() and drawn.max() < 24 and work.passes == 8
print(found.device.type)
"""


@pytest.mark.gpu
def test_cached_passes_equal_a_whole_one_on_a_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "cuda"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[-1] == "cuda", done.stderr
