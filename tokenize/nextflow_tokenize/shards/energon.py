"""`.nv-meta`: what lets Megatron Energon 7 read a shard set in place, as a crude WebDataset.

Energon wants `.info.json` (shard name → samples), `split.yaml`, `dataset.yaml` (which class reads it) and, beside each tar,
an index of sample offsets: our member index is that very file. No `index.sqlite` is written: Energon needs it only to look
samples up by key, and it would not be byte-reproducible; `energon prepare` adds it. A crude data set yields each sample's
members for a user's own cooker to interpret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

NV_META = ".nv-meta"
ENERGON_VERSION = "7.4.1"
"""The version whose format this follows. Checked by hand with it: it yields every sample of a set with equal arrays."""


def nv_meta(shard_samples: Mapping[str, int]) -> dict[str, bytes]:
    """The files of `.nv-meta` by their names in the set. Shards without samples are left out: Energon refuses them."""
    counts = {name: samples for name, samples in sorted(shard_samples.items()) if samples}
    info = {"energon_version": ENERGON_VERSION, "shard_counts": counts}
    # JSON is YAML, and needs no library to be deterministic.
    split = {"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}
    dataset = {
        "__module__": "megatron.energon",
        "__class__": "CrudeWebdataset",
        "subflavors": {"format": "megatron-nextflow"},
    }
    values = {".info.json": info, "dataset.yaml": dataset, "split.yaml": split}
    return {f"{NV_META}/{name}": json.dumps(value, indent=1).encode() + b"\n" for name, value in values.items()}
