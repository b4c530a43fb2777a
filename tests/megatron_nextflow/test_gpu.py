"""On a GPU: the same losses as on a CPU, FlexAttention as exact as the calls, FP8 near bf16.

Each test is a process of its own, because this one's torch answers for the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.watch.reporter import read_metrics

pytestmark = pytest.mark.gpu
Config = Callable[..., TrainConfig]

_ATTENTION = """
import json, torch
from megatron_nextflow.runtime.device import setup
device = setup("cuda")
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_nextflow.model.attention import BlockRangeAttention, BlockRangeParams
visible = []
for start, sizes in ((0, [1] * 70 + [4, 9, 16, 25, 36, 100, 256]), (516, [1] * 300 + [400])):
    at = start
    for size in sizes:
        visible += [(start, at + size)] * size
        at += size
visible = torch.tensor(visible, dtype=torch.int32).t()[:, None]
slots = visible.size(-1)
config = TransformerConfig(num_layers=1, hidden_size=256, num_attention_heads=4, num_query_groups=2, attention_dropout=0.0)
module = BlockRangeAttention(config, 1, AttnMaskType.causal, "self")
qkv = [torch.randn(slots, 1, n, 64, device=device, requires_grad=True) for n in (4, 2, 2)]
keys = torch.arange(slots)
dense = ((keys >= visible[0, 0, :, None]) & (keys < visible[1, 0, :, None])).to(device)
q, k, v = (x.permute(1, 2, 0, 3) for x in qkv)
reference = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True)
reference = reference.permute(2, 0, 1, 3).reshape(slots, 1, -1)
found = module(*qkv, packed_seq_params=BlockRangeParams.of(visible, device))
upstream = torch.randn_like(found)
ours, theirs = (torch.autograd.grad(x, qkv, upstream) for x in (found, reference))
difference = [(found - reference).abs().max(), *((a - b).abs().max() for a, b in zip(ours, theirs))]
print(json.dumps([float(d) for d in difference]))
"""


def _trained(config: TrainConfig, output: Path) -> list[float]:
    file = output / "given.json"
    output.mkdir(parents=True)
    file.write_text(config.model_copy(update={"output": output / "run"}).model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_nextflow.train", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [row["loss"] for row in read_metrics(output / "run")]


def test_flex_attention_equals_a_dense_mask() -> None:
    done = subprocess.run([sys.executable, "-c", _ATTENTION], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(json.loads(done.stdout.splitlines()[-1])) < 5e-3  # float32 with TF32 in torch's compiled kernel


def test_losses_are_the_cpus(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    config = make_config(training_data, tmp_path)
    cpu = _trained(config, tmp_path / "cpu")
    assert _trained(config.model_copy(update={"device": "cuda"}), tmp_path / "gpu") == pytest.approx(cpu, rel=2e-3)


def test_bf16_and_fp8_are_near(make_config: Config, training_data: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformer_engine")
    config = make_config(training_data, tmp_path, precision="bf16").model_copy(update={"device": "cuda"})
    plain = _trained(config, tmp_path / "bf16")
    eight = _trained(config.model_copy(update={"fp8": "tensorwise"}), tmp_path / "fp8")
    assert eight == pytest.approx(plain, rel=0.05)
    assert eight != plain
