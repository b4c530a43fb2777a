"""A training of which every step begins at a state of one process's: `step_by_step.py FOLDER`.

Alone, it trains and keeps each step's state. One of several, it takes each of those steps anew from the state before it. So
a comparison sees one step's rounding and never what later steps, a discriminator and nearest codes make of it.
"""

import sys
from pathlib import Path

import torch
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision import processes
from nextflow_tokenize.vision.images.dataset import load_pool
from nextflow_tokenize.vision.images.image_index import encoded_images, index
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.training.beginning import begin
from nextflow_tokenize.vision.training.trainer import TokenizerTrainer


def train(folder: Path) -> None:
    config = VisionTokenizerConfig.model_validate_json((folder / "config.json").read_bytes())
    settings = config.training
    images = encoded_images(index([str(folder / "images")], folder / f"index-{processes.rank()}.parquet"))
    pool = load_pool(images, config.levels, settings.held_out, settings.max_images, settings.seed)
    torch.manual_seed(settings.seed)
    tokenizer = VisionTokenizer(config)
    trainer = TokenizerTrainer(tokenizer, pool.training, settings)
    begin(tokenizer, trainer.start_batches(), settings, torch.Generator().manual_seed(settings.seed))
    trainer.prepare()
    for step in range(settings.steps):
        before = folder / f"before-{step}.pt"
        if processes.world() == 1:
            torch.save(trainer.state(), before)
        else:
            trainer.restore(torch.load(before, weights_only=True))
        metrics = trainer.advance(trainer.batches(), dict)
        if processes.rank() == 0:
            after = {"metrics": metrics, "state": trainer.state()}
            torch.save(after, folder / f"after-{step}-of-{processes.world()}.pt")
    processes.total(torch.zeros(1))  # nobody leaves while another is at work


torch.set_num_threads(1)
processes.start("cpu")
train(Path(sys.argv[1]))
# What holds the group is gone by now: threads of gloo that live until the interpreter's end can abort it there.
processes.stop()
