"""Training on drawn pictures: it improves, it repeats itself, it survives bad images and being cut off."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from nextflow_data.common.json_lines import read_rows
from nextflow_data.storage.errors import StoreError
from nextflow_tokenize.config.vision import VisionTokenizerConfig, VisionTrainingConfig
from nextflow_tokenize.schedule import grids
from nextflow_tokenize.vision.codes.codebook import GradientCodes, RunningMeans, place, place_semantic
from nextflow_tokenize.vision.codes.quantizer import MultiScaleQuantizer
from nextflow_tokenize.vision.identity import identity
from nextflow_tokenize.vision.images.dataset import CropSampler, EncodedImage, NoImages, load_pool
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.scores.evaluate import evaluate
from nextflow_tokenize.vision.scores.metrics import psnr
from nextflow_tokenize.vision.scores.perceptual import gradient_distance
from nextflow_tokenize.vision.scores.sheets import contact_sheet, preview, preview_scales
from nextflow_tokenize.vision.training import checkpoints as training_state
from nextflow_tokenize.vision.training.objective import Objective, trained_parameters
from nextflow_tokenize.vision.training.training_stage import train_one_stage
from PIL import Image, ImageDraw


def drawing(seed, size=(180, 140)):
    """A picture with a gradient, boxes and lines, as PNG."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(random.uniform(0, 120, 3), random.uniform(120, 255, 3), size[0])
    image = Image.fromarray(np.broadcast_to(ramp[None], (size[1], size[0], 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, w, h = random.integers(0, 120, 4)
        draw.rectangle((x, y, x + w // 2, y + h // 2), fill=tuple(int(c) for c in random.integers(0, 255, 3)))
        draw.line((y, x, w, h), fill=(0, 0, 0), width=3)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def broken():
    raise OSError("the file is gone")


SIZES = [(180, 140), (140, 180), (400, 120), (150, 150)]
IMAGES = [EncodedImage.of(drawing(i, SIZES[i % 4])) for i in range(12)]
BAD = [EncodedImage.of(b"not an image"), EncodedImage("ab" * 32, broken), EncodedImage.of(drawing(90, (20, 20)))]


def settings(**training):
    defaults = {
        "steps": 25,
        "learning_rate": 4e-3,
        "batch_tokens": 512,
        "held_out": 0.2,
        "warmup_steps": 3,
        "threads": 1,
        "precision": "float32",
    }
    return VisionTokenizerConfig(
        levels=(128,), codebook_size=256, semantic_dim=4, pixel_dim=12, patch=8, channels=16, decoder_channels=16,
        channel_mult=(1, 2), semantic_channels=16, training=VisionTrainingConfig(**{**defaults, **training}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "tokenizer"
    seen = []
    report = train_one_stage(
        [*IMAGES, *BAD], settings(), out, lambda done, steps, metrics: seen.append((done, steps, metrics))
    )
    return out, report, seen


def test_training_improves_on_its_start(trained, tmp_path):
    _, report, _ = trained
    started = train_one_stage(IMAGES, settings(steps=0), tmp_path / "start")
    assert report.psnr_training > started.psnr_training + 0.5
    assert report.psnr_held_out > started.psnr_held_out
    assert report.semantic_cosine > started.semantic_cosine + 0.15


def test_the_report_and_the_files(trained):
    out, report, seen = trained
    assert report.identity == identity(out)
    assert (report.training_images, report.held_out_images, report.steps, report.stopped_early) == (10, 2, 25, False)
    assert [done for done, _, _ in seen] == [10, 20, 25]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [10, 20, 25, None]
    assert lines[-1]["final"]["identity"] == report.identity
    assert all(0 < line["usage"] <= 1 and line["l2"] > 0 for line in lines[:-1])
    scores = json.loads((out / "evaluation.json").read_text())
    assert len(scores["images"]) == 2 and len(scores["scales"]) == 8
    assert Image.open(out / "held_out.png").width > 160 * 4
    assert not out.with_name("tokenizer.partial").exists()


def test_bad_images_are_left_out_with_a_reason(trained):
    failed = trained[1].failed
    assert set(failed) == {image.sha256 for image in BAD}
    assert "the file is gone" in failed["ab" * 32]
    assert "too few" in failed[BAD[2].sha256]


def test_a_store_that_fails_is_no_bad_image(tmp_path):
    def failing():
        raise StoreError("503")

    with pytest.raises(StoreError):
        train_one_stage([*IMAGES, EncodedImage("ef" * 32, failing)], settings(), tmp_path / "out")


def test_the_same_run_gives_the_same_files(trained, tmp_path):
    before = torch.get_num_threads()
    torch.manual_seed(99)
    train_one_stage([*reversed(BAD), *reversed(IMAGES)], settings(), tmp_path / "again")
    for name in ("config.json", "weights.safetensors", "metrics.jsonl", "evaluation.json", "held_out.png"):
        assert (tmp_path / "again" / name).read_bytes() == (trained[0] / name).read_bytes(), name
    assert torch.get_num_threads() == before


def test_another_seed_gives_another_tokenizer(trained, tmp_path):
    assert train_one_stage(IMAGES, settings(seed=1), tmp_path / "other").identity != trained[1].identity


def test_cut_off_it_leaves_nothing_that_looks_done(trained, tmp_path):
    def stop(done, steps, metrics):
        raise KeyboardInterrupt

    out = tmp_path / "tokenizer"
    with pytest.raises(KeyboardInterrupt):
        train_one_stage([*IMAGES, *BAD], settings(), out, stop)
    assert not out.exists()
    assert train_one_stage([*IMAGES, *BAD], settings(), out).identity == trained[1].identity
    with pytest.raises(FileExistsError, match="never overwritten"):
        train_one_stage(IMAGES, settings(), out)


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(NoImages, match="none of 3 images"):
        train_one_stage(BAD, settings(), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_networks_without_linear_projections_or_kmeans_train_in_bfloat16(tmp_path):
    config = settings(steps=3, kmeans_iterations=0, precision="bfloat16").model_copy(update={"linear_skip": False})
    report = train_one_stage(IMAGES, config, tmp_path / "plain")
    assert np.isfinite(report.psnr_training)


def test_evaluation_of_any_images(trained):
    tokenizer = VisionTokenizer.load(trained[0])
    report = evaluate(tokenizer, [*IMAGES[:3], *BAD])
    assert len(report.images) == 3 and set(report.failed) == {image.sha256 for image in BAD}
    assert report.psnr == pytest.approx(np.mean([score.psnr for score in report.images]))
    assert report.dead == round((1 - report.usage) * 256)
    assert [use.scale for use in report.scales] == list(range(1, 9))
    for use in report.scales:
        assert 1 <= use.perplexity <= use.distinct + 1e-9 <= use.tokens + 1e-9
    with pytest.raises(ValueError, match="none of 3"):
        evaluate(tokenizer, BAD)


def test_sheets_and_previews(trained):
    tokenizer = VisionTokenizer.load(trained[0])
    picture = Image.open(io.BytesIO(drawing(3)))
    shown = preview(tokenizer, picture)
    assert preview_scales(8) == [1, 2, 4, 8] and preview_scales(12) == [1, 2, 4, 8, 12] and preview_scales(1) == [1]
    assert shown.width == 5 * 260 + 4
    assert contact_sheet(tokenizer, [(picture, grids((64, 64), 8))] * 2, cell=80).height > 160
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet(tokenizer, [])


# --- stages, and going on ---


def tree(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stopped(config, out, work, at, images=IMAGES, **more):
    def stop(done, steps, metrics):
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_one_stage(images, config, out, stop, work=work, **more)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"adversarial_weight": 0.1, "adversarial_start": 5, "discriminator_channels": 8, "weights_ema": 0.9},
        pytest.param({"codebook": "gradient", "micro_batches": 2, "scale_drop": 0.5}, marks=pytest.mark.slow),
        pytest.param({"codebook": "simvq", "scale_drop": 0.5, "scale_drop_steps": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_goes_on_exactly(tmp_path, more):
    config = settings(**more)
    train_one_stage(IMAGES, config, tmp_path / "whole")
    stopped(config, tmp_path / "parts", tmp_path / "work", 10)
    assert [path.name for path in training_state.found(tmp_path / "work")] == ["checkpoint-00000010.pt"]
    shown, left = tmp_path / "work" / "metrics.jsonl", tmp_path / "work" / ".checkpoint-00000020.pt.1f.writing"
    with open(shown, "a") as record:
        record.write('{"step": 20}\n{"st')  # as after a kill, later than the last checkpoint
    left.touch()
    seen = []

    def look(done, steps, metrics):
        seen.append([row["step"] for row in read_rows(shown)])

    train_one_stage(IMAGES, config, tmp_path / "parts", look, work=tmp_path / "work")
    assert seen == [[10, 20], [10, 20, 25]] and not left.exists()
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert not (tmp_path / "work").exists()


def test_kept_checkpoints_and_what_is_done_about_damage(tmp_path, caplog):
    config = settings(checkpoint_interval=6)
    work = tmp_path / "work"
    stopped(config, tmp_path / "out", work, 20)
    assert [path.name for path in training_state.found(work)] == ["checkpoint-00000020.pt", "checkpoint-00000018.pt"]
    newest = training_state.found(work)[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    train_one_stage(IMAGES, config, tmp_path / "out", work=work)
    assert f"{newest} cannot be read" in caplog.text
    train_one_stage(IMAGES, config, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    stopped(settings(), tmp_path / "out", tmp_path / "work", 10)
    with pytest.raises(training_state.OtherTraining, match="other settings or images"):
        train_one_stage(IMAGES, settings(learning_rate=1e-3), tmp_path / "out", work=tmp_path / "work")
    with pytest.raises(training_state.OtherTraining):
        train_one_stage(IMAGES[:-1], settings(), tmp_path / "out", work=tmp_path / "work")
    # One of before is known by every setting's value; and what only says how to work may change.
    pool = pool_of(settings())
    now, before = training_state.fingerprints(settings(), pool, None)
    state = training_state.load(tmp_path / "work", (now,))
    training_state.save(tmp_path / "work", 10, state | {"fingerprint": before})
    train_one_stage(IMAGES, settings(checkpoint_interval=7, cache_mib=1), tmp_path / "out", work=tmp_path / "work")


def test_export_of_a_training_at_work(tmp_path):
    config = settings(weights_ema=0.5)
    stopped(config, tmp_path / "out", tmp_path / "work", 10)
    assert training_state.export(tmp_path / "work", tmp_path / "exported") == 10
    # A run of ten steps with the same averages is the same tokenizer; its rate differs, so steps must be stopped, not fewer.
    state = training_state.load(tmp_path / "work", training_state.fingerprints(config, pool_of(config), None))
    loaded = VisionTokenizer.load(tmp_path / "exported")
    name = "pixel_decoder.body.first.weight"
    assert torch.equal(dict(loaded.named_parameters())[name], averaged_of(state, config, name))
    assert not torch.equal(state["model"]["tokenizer." + name], averaged_of(state, config, name))
    with pytest.raises(FileNotFoundError, match="nor a checkpoint"):
        training_state.export(tmp_path, tmp_path / "none")


def pool_of(config):
    pool = load_pool(IMAGES, config.levels, config.training.held_out, config.training.max_images, config.training.seed)
    return [*pool.training, *pool.held_out]


def averaged_of(state, config, name):
    tokenizer = VisionTokenizer(config)
    trained = {id(p) for p in trained_parameters(tokenizer, config.training)}
    names = [n for n, p in tokenizer.named_parameters() if id(p) in trained]
    return state["averaged"][names.index(name)]


def test_the_three_stages(tmp_path):
    """Pixel branch alone; joint from it; a wider decoder alone, for the same codes."""
    pixel = train_one_stage(IMAGES, settings(stage="pixel"), tmp_path / "pixel")
    assert pixel.semantic_cosine is None
    first = VisionTokenizer.load(tmp_path / "pixel")
    assert first.config.branches == "pixel"
    started = train_one_stage(IMAGES, settings(steps=0), tmp_path / "start", init=tmp_path / "pixel")
    joint = train_one_stage(IMAGES, settings(), tmp_path / "joint", init=tmp_path / "pixel")
    begun, second = VisionTokenizer.load(tmp_path / "start"), VisionTokenizer.load(tmp_path / "joint")
    assert second.config.branches == "dual"
    for name, value in first.state_dict().items():
        if name.startswith(("pixel_encoder.", "pixel_decoder.")) or name == "quantizer.pixel":
            assert torch.equal(begun.state_dict()[name], value), name
    torch.testing.assert_close(begun.quantizer.semantic.norm(dim=1), torch.ones(256))
    assert joint.semantic_cosine > started.semantic_cosine + 0.1

    wider = settings(stage="decoder").model_copy(update={"decoder_channels": 32})
    report = train_one_stage(IMAGES, wider, tmp_path / "decoder", init=tmp_path / "joint")
    third = VisionTokenizer.load(tmp_path / "decoder")
    assert third.config.decoder_channels == 32
    schedule = grids((64, 64), 8)
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(third.encode(pictures, schedule).target, second.encode(pictures, schedule).target)
    changed = {
        name for name, v in third.state_dict().items() if not torch.equal(v, second.state_dict().get(name, v.new_zeros(0)))
    }
    assert changed and all(name.startswith("pixel_decoder.") for name in changed)
    before = train_one_stage(IMAGES, wider.model_copy(update={"training": wider.training.model_copy(update={"steps": 0})}),
                   tmp_path / "before", init=tmp_path / "joint")  # fmt: skip
    assert report.psnr_training > before.psnr_training
    deeper = settings(stage="decoder", steps=0).model_copy(update={"decoder_res_blocks": 2})
    grown = train_one_stage(IMAGES, deeper, tmp_path / "deeper", init=tmp_path / "joint")
    assert grown.psnr_training == joint.psnr_training  # a deeper decoder begins as the one it grew from
    with pytest.raises(ValueError, match="stage decoder"):
        train_one_stage(IMAGES, wider, tmp_path / "none")
    with pytest.raises(ValueError, match="put a joint stage before"):
        train_one_stage(IMAGES, wider, tmp_path / "none", init=tmp_path / "pixel")
    for changed in ({"w_dis": 3.0}, {"linear_skip": False}):
        with pytest.raises(ValueError, match=r"decides them|there is no"):
            train_one_stage(IMAGES, wider.model_copy(update=changed), tmp_path / "none", init=tmp_path / "joint")
    with pytest.raises(ValueError, match="only the pixel decoder may change"):
        train_one_stage(
            IMAGES, settings().model_copy(update={"codebook_size": 128}), tmp_path / "none", init=tmp_path / "joint"
        )


def test_a_single_branch_is_probed_and_not_moved(tmp_path):
    """With one branch the semantic decoder learns from pixel codes that do not know of it."""
    config = settings(semantic_weight=0.0).model_copy(update={"branches": "pixel"})
    train_one_stage(IMAGES, config, tmp_path / "without")
    probed = config.model_copy(update={"training": config.training.model_copy(update={"semantic_weight": 1.0})})
    report = train_one_stage(IMAGES, probed, tmp_path / "with")
    one, other = (VisionTokenizer.load(tmp_path / name).state_dict() for name in ("without", "with"))
    assert torch.equal(one["quantizer.pixel"], other["quantizer.pixel"])
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    # Clipping the gradient as a whole couples the branches, so networks may differ; the start's codes and the probe tell.
    assert any(name.startswith("semantic_decoder.") for name in moved)
    assert report.semantic_cosine > 0.3


def test_processes_that_decode_ahead_change_nothing(trained, tmp_path):
    train_one_stage([*IMAGES, *BAD], settings(workers=2), tmp_path / "ahead")
    assert (tmp_path / "ahead" / "weights.safetensors").read_bytes() == (trained[0] / "weights.safetensors").read_bytes()


def test_images_that_fail_while_training_are_replaced_and_named(tmp_path):
    lost = EncodedImage("cd" * 32, broken, (150, 150))
    report = train_one_stage([*IMAGES, lost], settings(held_out=0.0), tmp_path / "out")
    assert report.failed == {"cd" * 32: "OSError: the file is gone"}


def test_tensorboard_gets_curves_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_one_stage(IMAGES, settings(picture_interval=20), tmp_path / "out", log_dir=tmp_path / "log")
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert {"psnr", "usage", "l2", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("psnr")] == [10, 20, 25]
    assert len(events.Images(events.Tags()["images"][0])) == 1


def test_out_of_time_it_ends_with_what_it_has(tmp_path):
    report = train_one_stage(IMAGES, settings(max_seconds=1e-9), tmp_path / "out")
    assert (report.steps, report.stopped_early) == (1, True)
    assert [json.loads(line).get("step") for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()] == [
        1,
        None,
    ]


def test_a_loss_that_is_no_number_stops_at_once(tmp_path):
    with pytest.raises(FloatingPointError, match=r"lower training\.learning_rate"):
        train_one_stage(IMAGES, settings(learning_rate=1e30, gradient_clip=1e30), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_published_losses_are_those_of_the_formulas(tmp_path):
    """TokenFlow's terms on one micro-batch, computed again from what the model gives."""
    config = settings(stage="joint")
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(config)
    schedule = grids((64, 64), 8)
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        tokenizer.quantizer.semantic.copy_(torch.nn.functional.normalize(torch.randn(256, 4), dim=1))
    objective = Objective(tokenizer, RunningMeans(tokenizer.quantizer, 0.9, 0.0), config.training, bf16=False)
    outcome = objective(pixels, schedule, frozenset())
    features = tokenizer.features(pixels)
    total = tokenizer.quantizer.trace(features.detach(), schedule).partial[-1]
    image, taught = tokenizer.pixel_decoder(total[:, 4:]), tokenizer.teach(pixels)
    decoded = tokenizer.semantic_decoder(total[:, :4])
    cosine = (decoded * taught).sum(1) / (decoded.norm(dim=1) * taught.norm(dim=1))
    expected = {
        "l2": (image - pixels).square().mean(),
        "l1": (image - pixels).abs().mean(),
        "semantic": 1 - cosine.mean(),
        "commitment": (features - total).square().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(outcome.losses[name], value, rtol=1e-4, atol=1e-5)
    weights = {"l2": 1.0, "l1": 0.1, "perceptual": 0.2, "semantic": 0.5, "commitment": 0.25}
    torch.testing.assert_close(outcome.loss, sum(w * outcome.losses[n] for n, w in weights.items()))
    outcome.loss.backward()
    # Straight through: the encoder's last layer gets the decoder's gradient.
    assert tokenizer.pixel_encoder.body[-1].weight.grad.abs().sum() > 0


# --- parts ---


def test_the_split_depends_on_hashes_alone():
    one = load_pool([*IMAGES, *IMAGES[:2]], (128,), 0.25, 100, 0)
    other = load_pool(IMAGES[::-1], (128,), 0.25, 100, 0)
    assert [p.sha256 for p in one.held_out] == [p.sha256 for p in other.held_out]
    assert [p.sha256 for p in one.training] == [p.sha256 for p in other.training]
    assert (len(one.held_out), len(one.training)) == (3, 9)
    assert len(load_pool(IMAGES, (128,), 0.25, 4, 0).training) == 3
    assert load_pool(IMAGES, (128,), 0.0, 100, 0).held_out == []


def test_crops_fill_the_batch_and_are_not_enlarged_too_much():
    pool = load_pool(IMAGES, (128,), 0, 100, 0)
    sampler = CropSampler(pool.training, (128, 256), 600, 0.5, 0)
    assert sampler.levels == [128]  # no image is large enough for 256
    seen = set()
    for number in range(20):
        batch = sampler.draw(number)
        schedule, arrays = batch.schedule, batch.arrays
        h, w = schedule[-1]
        seen.add((h, w))
        assert len(arrays) == max(1, 600 // (h * w))
        assert all(array.shape == (16 * h, 16 * w, 3) for array in arrays)
        again = CropSampler(pool.training, (128, 256), 600, 0.5, 0).draw(number)
        assert again.schedule == schedule and all(map(np.array_equal, again.arrays, arrays))
    assert len(seen) >= 3


def test_a_micro_batch_is_of_its_grids_own_images_where_they_are_enough():
    """Wide images in one colour, square ones in another: each micro-batch of single images has one colour, its grid's."""

    def plain(size, colour):
        stream = io.BytesIO()
        Image.new("RGB", size, colour).save(stream, "PNG")
        return EncodedImage.of(stream.getvalue())

    images = [plain((400 + i, 120), (255, 0, 0)) for i in range(3)] + [plain((150 + i, 150), (0, 0, 255)) for i in range(3)]
    sampler = CropSampler(load_pool(images, (128,), 0, 100, 0).training, (128,), 1, 1.0, 0)
    seen = set()
    for number in range(30):
        batch = sampler.draw(number)
        wide = batch.schedule[-1][1] > batch.schedule[-1][0]
        seen.add(wide)
        assert (batch.arrays[0] == ((255, 0, 0) if wide else (0, 0, 255))).all()
    assert seen == {True, False}


def test_kmeans_and_running_means_find_directions():
    """Residuals along eight known directions a branch: eight codes must land on them, from any start."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(8) * torch.pi / 4 + 0.1
    directions = torch.stack([angle.cos(), angle.sin()], dim=1)
    which = torch.randint(8, (2, 40, 40), generator=generator)
    batch = torch.cat([directions[which], directions[which]], dim=-1).permute(0, 3, 1, 2) * 5
    torch.manual_seed(3)
    quantizer = MultiScaleQuantizer(8, 2, 2, 1.0)
    one_scale = ((40, 40),)
    place(quantizer, [(batch, one_scale)], 10, generator)
    means = RunningMeans(quantizer, 0.5, 0.05)
    for step in range(30):
        means.update([quantizer.trace(batch, one_scale)], step)
    similarity = quantizer.semantic @ directions.t()
    assert similarity.max(dim=0).values.min() > 0.999
    assert means.usage() == 1.0


def test_dead_codes_start_again_on_residuals():
    quantizer = MultiScaleQuantizer(4, 2, 2, 1.0)
    far = torch.tensor([-1.0, 0.0])
    quantizer.semantic.copy_(torch.tensor([[1.0, 0.0]] + [[-1.0, 0.0]] * 3))
    quantizer.pixel.copy_(quantizer.semantic)
    means = RunningMeans(quantizer, 0.5, 0.1)
    batch = torch.tensor([1.0, 0.2, 1.0, 0.2]).view(1, 4, 1, 1).expand(1, 4, 8, 8)
    for step in range(4):
        means.update([quantizer.trace(batch, ((8, 8),))], step)
    assert (quantizer.semantic @ far).max() < 0
    torch.testing.assert_close(quantizer.semantic.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("simvq", [False, True])
def test_gradient_codes_follow_their_loss(simvq):
    """The loss is TokenFlow's by hand; following its gradient brings codes nearer to the residuals that chose them."""
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(16, 3, 5, 1.0)
    codes = GradientCodes(quantizer, 0.9, 0.0, simvq=simvq)
    batch, schedule = torch.randn(2, 8, 6, 6), ((2, 2), (6, 6))
    trace = quantizer.trace(batch, schedule)
    by_scale = []
    for rows, chosen in zip(trace.rows, trace.codes, strict=True):
        unit = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in rows.split((3, 5), dim=1)], dim=1)
        by_scale.append((quantizer.codebook[chosen] - unit).square().mean())
    torch.testing.assert_close(codes.loss(trace).detach(), torch.stack(by_scale).mean())
    optimizer = torch.optim.SGD(codes.parameters(), lr=0.5)
    losses = []
    for step in range(40):
        trace = quantizer.trace(batch, schedule)
        loss = codes.loss(trace)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        codes.update([trace], step)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    torch.testing.assert_close(quantizer.pixel.norm(dim=1), torch.ones(16))


def test_semantic_codes_of_a_pixel_codebook_are_the_mean_directions_of_what_chose_them():
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(8, 2, 3, 1.0)
    pixel = quantizer.pixel.clone()
    batch = torch.randn(1, 5, 6, 6)
    place_semantic(quantizer, [(batch, ((6, 6),))], torch.Generator().manual_seed(0))
    assert torch.equal(quantizer.pixel, pixel)
    rows = batch[0].flatten(1).t()
    nearest = (torch.nn.functional.normalize(rows[:, 2:], dim=1) @ pixel.t()).argmax(1)
    for code in nearest.unique().tolist():
        mean = rows[nearest == code, :2].sum(0)
        torch.testing.assert_close(quantizer.semantic[code], mean / mean.norm())


def test_psnr_and_gradient_distance_by_hand():
    black = torch.full((1, 3, 16, 16), -1.0)
    assert psnr(black, black + 2 * 10 / 255) == pytest.approx(20 * np.log10(255 / 10))
    assert float(gradient_distance(black, black + 1)) == 0
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 3, 16, 16) / 10
    # Horizontal slope 0.1, 0.2, 0.4 at three octaves, none vertically, over six terms.
    assert float(gradient_distance(ramp, torch.zeros_like(ramp))) == pytest.approx(0.7 / 6, rel=1e-5)


def test_encoded_images_carry_their_hash():
    image = EncodedImage.of(b"abc")
    assert image.sha256.startswith("ba7816bf8f01cfea") and image.load() == b"abc"
    assert dataclasses.is_dataclass(image)
