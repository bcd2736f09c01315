"""The training loop: its results, and how it ends."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from otus.data.dataset import Dataset
from otus.data.scenes.generator import Scenes
from otus.data.tensors import TensorSample, sample_generator, to_tensors
from otus.data.transforms.augmentation import ColorJitter, Compose, CropAndPad, HorizontalFlip, RandomCrop
from otus.data.transforms.geometry import masks_to_boxes
from otus.data.transforms.mixing import Mosaic
from otus.errors import TrainingError, UsageError
from otus.parts.preprocess import Preprocess
from otus.training import loop
from otus.training.budget import (
    describe_plan,
    plan_is_due,
    plan_steps,
    size_for_labels,
    validation_is_cheap,
    validation_is_due,
)
from otus.training.devices import start_fabric
from otus.training.optimization import learning_rate, make_optimizer, warm_up_fraction
from otus.training.progress import TrainProgress
from otus.training.resuming import pack, unpack
from otus.training.seeding import model_generator
from otus.training.settings import TrainSettings
from otus.training.state import UNPLANNED, RunState, Validation
from otus.training.train_loader import BatchIndex, RandomSampleSource, TrainLoader, epoch_order
from otus.zoo.checkpoint import load_checkpoint
from tiny_run import AUGMENT, PREPROCESS, TinyDetector, run, tiny_detector

SCRIPT = Path(__file__).parents[1] / "tiny_run.py"


def plain_torch(system: nn.Module, dataset: Dataset, settings: TrainSettings) -> nn.Module:
    """Train in plain torch, using only the order of the images and the random numbers of the loop."""
    system.to(memory_format=torch.channels_last)  # dropout draws in the order of the memory
    vectors = [p for p in system.parameters() if p.ndim == 1]
    matrices = [p for p in system.parameters() if p.ndim > 1]
    optimizer = torch.optim.SGD([{"params": matrices, "weight_decay": 0.02}, {"params": vectors}], momentum=0.9)
    loader = TrainLoader(dataset, PREPROCESS, settings, augment=AUGMENT)
    steps_per_epoch = 12 // 4
    for step in range(settings.epochs * steps_per_epoch):
        for group in optimizer.param_groups:
            total = settings.epochs * steps_per_epoch
            group["lr"] = learning_rate(step / total, warm_up=warm_up_fraction(total, settings), settings=settings)
        for part in range(2):
            places = next(loader.plan(2 * step + part))
            generator = model_generator(0, 2 * step + part, 0)
            losses = system.losses([loader.load(place) for place in places], generator=generator)
            (sum(losses.values()) / 2).backward()
        torch.nn.utils.clip_grad_norm_(system.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return system


def test_the_loop_ends_in_the_weights_of_plain_torch(scenes: Dataset) -> None:
    options = {
        "batch_size": 2,
        "accumulate": 2,
        "clip_norm": 0.5,
        "average_decay": 0.0,
        "epochs": 4,
        "optimizer": "sgd",
    }
    ours = run(tiny_detector(), scenes, **options).system
    settings = TrainSettings(**options, learning_rate=0.01, warm_up_steps=3)
    theirs = plain_torch(tiny_detector(), scenes, settings)
    for (name, mine), (_, reference) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6, msg=name)


def test_the_average_follows_the_weights(scenes: Dataset) -> None:
    system = tiny_detector()
    start = [p.detach().clone() for p in system.parameters()]
    averaged = run(system, scenes, average_decay=0.9, epochs=1).system
    assert averaged is not system
    for before, mine, last in zip(start, averaged.parameters(), system.parameters(), strict=True):
        assert not torch.equal(mine, last)
        assert (mine - last).norm() < (before - last).norm()


def test_the_number_of_workers_changes_nothing(scenes: Dataset) -> None:
    first, second = (run(tiny_detector(), scenes, workers=workers).system.state_dict() for workers in (0, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), pytest.param("bf16-mixed", torch.bfloat16, marks=pytest.mark.bfloat16)],
)
def test_the_losses_run_in_the_precision_asked_for(scenes: Dataset, precision: str, dtype: torch.dtype) -> None:
    system = tiny_detector()
    run(system, scenes, precision=precision, epochs=1)
    assert set(system.dtypes) == {dtype}
    assert {p.dtype for p in system.parameters()} == {torch.float32}


@pytest.mark.bfloat16
def test_mixed_precision_leaves_the_samples_as_they_are(scenes: Dataset) -> None:
    seen: list[torch.dtype] = []

    class Watching(TinyDetector):
        def losses(self, samples: list[TensorSample], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
            seen.extend(sample[name].dtype for sample in samples for name in ("image", "boxes"))
            return super().losses(samples, generator=generator)

    run(Watching(), scenes, precision="bf16-mixed", epochs=1)
    assert set(seen) == {torch.float32}  # in bfloat16 a box at 301 pixels would be one at 302


def test_an_epoch_has_every_image_once_and_batches_of_one_shape() -> None:
    groups = torch.tensor([0, 1, 1] * 10).numpy()
    order = epoch_order(30, batch_size=5, seed=3, epoch=2, groups=groups)
    assert sorted(order.flatten().tolist()) == list(range(30))
    assert (groups[order].min(axis=1) == groups[order].max(axis=1)).all()
    assert order.tolist() == epoch_order(30, batch_size=5, seed=3, epoch=2, groups=groups).tolist()
    assert order.tolist() != epoch_order(30, batch_size=5, seed=3, epoch=3, groups=groups).tolist()
    filled = epoch_order(3, batch_size=8, seed=0, epoch=0)
    assert filled.shape == (1, 8)
    assert set(filled[0]) == {0, 1, 2}


def test_images_are_mixed_the_same_way_each_time(scenes: Dataset) -> None:
    settings = TrainSettings(batch_size=4)
    mosaic = Mosaic(RandomSampleSource(scenes), (40, 40))
    assert repr(mosaic) == repr(Mosaic(RandomSampleSource(scenes.select([0])), (40, 40)))  # without the data set
    feeds = [TrainLoader(scenes, PREPROCESS, settings, augment=mosaic) for _ in range(2)]
    (first, *_), (second, *_) = ([loader.load(place) for place in next(loader.plan())] for loader in feeds)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["boxes"], second["boxes"])


def test_every_process_takes_its_part_of_each_batch(scenes: Dataset) -> None:
    settings = TrainSettings(batch_size=4, accumulate=2)
    whole = next(TrainLoader(scenes, PREPROCESS, settings).plan())
    parts = [next(TrainLoader(scenes, PREPROCESS, settings, rank=rank, world_size=2).plan()) for rank in range(2)]
    assert parts[0] + parts[1] == whole


def test_of_equal_scores_the_last_is_best_and_patience_counts_them() -> None:
    state, kept = RunState(total_steps=9), []
    for step, score in enumerate((0.0, 0.0, 0.5, 0.4, 0.5), start=1):
        state.step = step
        kept.append(state.record_validation({}, Validation({}, score), seconds=1.0))
    assert kept == [True, True, True, False, True]
    assert (state.best_score, state.best_step, state.validations_since_best) == (0.5, 5, 2)


@pytest.mark.filterwarnings("ignore:.*which is a no-op")  # "meta" stands for a GPU, and keeps no values
def test_the_optimizers_tensors_go_to_where_the_weights_are() -> None:
    system = tiny_detector()
    optimizer = make_optimizer(system, TrainSettings())
    sum(parameter.sum() for parameter in system.parameters()).backward()
    optimizer.step()
    tensors, elsewhere = pack(system, system, optimizer), tiny_detector().to("meta")
    resumed = make_optimizer(elsewhere, TrainSettings())
    unpack(tensors, system=elsewhere, averaged=elsewhere, optimizer=resumed)
    assert {value.device.type for state in resumed.state.values() for value in state.values()} == {"meta"}


def test_learning_rate_rises_then_falls() -> None:
    settings = TrainSettings(learning_rate=1.0, warm_up_steps=4, schedule="cosine")
    assert warm_up_fraction(100, settings) == 0.04
    rates = [learning_rate(step / 100, warm_up=0.04, settings=settings) for step in range(100)]
    assert rates[:5] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])
    assert rates[52] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert warm_up_fraction(30, settings) == 0.1
    steps = TrainSettings(learning_rate=1.0, schedule="steps", drops_at=(0.5, 0.75), warm_up_steps=0)
    assert [learning_rate(s / 4, warm_up=0.0, settings=steps) for s in range(4)] == pytest.approx([1, 1, 0.1, 0.01])


@pytest.mark.parametrize("minutes", [0.5, 2, 8, 30])
def test_schedule_and_budget_end_together_whatever_the_speed_does(minutes: float) -> None:
    """If the first step is slow, and later other processes slow the machine down, the learning rate never rises again."""
    settings = TrainSettings(minutes=minutes, learning_rate=1.0)
    for slower_from, factor in ((0.0, 1.0), (0.3, 2.0), (0.5, 0.5)):
        state, rates = RunState(total_steps=UNPLANNED), []
        while state.step < state.total_steps:
            warm_up = warm_up_fraction(state.total_steps, settings) if state.warm_up is None else state.warm_up
            rates.append(learning_rate(state.fraction_done, warm_up=warm_up, settings=settings))
            late = state.seconds > slower_from * minutes * 60
            state.record_step({}, seconds=(factor if late else 1.0) * (3.0 if state.step == 0 else 0.8))
            if plan_is_due(state, minutes):
                plan = plan_steps(state, steps_per_epoch=6, minutes=minutes, validate_every=None, validation_images=2)
                state.plan(plan, warm_up=warm_up_fraction(plan, settings))
        left = minutes * 60 - state.seconds - state.seconds_of_validation
        assert abs(left) < max(0.04 * minutes * 60, 3.0)
        assert state.fraction_done == pytest.approx(1)
        assert rates[-1] < (0.12 if minutes < 1 else 0.01)
        peak = rates.index(max(rates))
        assert peak <= 0.15 * len(rates) + 3
        assert all(after <= before for before, after in pairwise(rates[peak:]))


class DivergingLoss(TinyDetector):
    """A detector whose loss is not finite from the fifth batch on."""

    def losses(self, samples: list[TensorSample], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        losses = super().losses(samples, generator=generator)
        return losses | {"class": losses["class"] / (len(self.dtypes) < 5)}


def test_a_loss_that_is_not_finite_stops_the_run(scenes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 4: .*class inf.* images (\d{3}\.png, ){3}\d{3}\.png.*last\.safe"):
        run(DivergingLoss(), scenes, tmp_path, epochs=3)
    tensors, header = load_checkpoint(tmp_path / "weights/last.safetensors")
    assert header.extra["run"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


class DivergingGradient(TinyDetector):
    """A detector with a finite loss and an infinite gradient, that of a square root at 0."""

    def losses(self, samples: list[TensorSample], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        losses = super().losses(samples, generator=generator)
        return losses | {"root": (losses["box"] * 0).sqrt()}


def test_a_gradient_that_is_not_finite_stops_the_run(scenes: Dataset) -> None:
    system = DivergingGradient()
    with pytest.raises(TrainingError, match="step 0: the gradient is not finite"):
        run(system, scenes, clip_norm=0)
    assert all(parameter.isfinite().all() for parameter in system.parameters())


def test_patience_ends_a_run_that_gets_no_better(scenes: Dataset, tmp_path: Path) -> None:
    result = run(tiny_detector(), scenes, tmp_path, validation=scenes, learning_rate=1e-9, patience=2, epochs=50)
    assert result.ended == "no better"
    assert len(result.history) < 10
    assert result.best_step is not None


def test_the_folder_of_a_run(scenes: Dataset, tmp_path: Path) -> None:
    result = run(tiny_detector(), scenes, tmp_path, validation=scenes, epochs=3, validate_every=2)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert ["score" in row for row in rows] == [False, True, True]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0].startswith("epoch,step,learning_rate,loss,loss/box")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    best = TinyDetector()
    best.load_state_dict(load_checkpoint(tmp_path / "weights/best.safetensors")[0])


@pytest.mark.parametrize("count", [1, 3])
def test_few_images(scenes: Dataset, count: int) -> None:
    assert len(run(tiny_detector(), scenes.select(range(count)), batch_size=8).history) == 3


def test_no_objects(scenes: Dataset) -> None:
    assert scenes.objects is not None
    empty = replace(scenes, objects=scenes.objects.take(slice(0, 0)))
    result = run(tiny_detector(), empty, validation=empty)
    assert result.history[-1]["loss/box"] == 0
    assert result.history[-1]["bbox/AP"] is None


def test_the_plan_of_a_budget_is_the_same_on_the_way() -> None:
    """At constant speed the schedule is never stretched, not even in runs shorter than an epoch."""
    planned = set()
    for step in (10, 400, 800):
        state = RunState(total_steps=1, step=step, seconds=step * 1.0, seconds_of_steps=step * 1.0)
        planned.add(plan_steps(state, steps_per_epoch=400, minutes=15, validate_every=None))
    assert planned == {900}
    state.seconds_of_validation = 60.0  # room is left for the last one
    assert 800 < plan_steps(state, steps_per_epoch=400, minutes=15, validate_every=3) <= 840


def test_the_time_budget_is_met(scenes: Dataset) -> None:
    result = run(tiny_detector(), scenes, minutes=0.05, validation=scenes)
    assert 1 < result.history[-1]["hours"] * 3600 < 6
    assert result.history[-1]["learning_rate"] < 0.005


def test_within_a_budget_validations_take_a_tenth_of_the_time() -> None:
    settings, state = TrainSettings(minutes=10), RunState(total_steps=1000, step=100, seconds=100.0)
    validated = []
    for epoch in range(1, 30):
        state.seconds += 5
        if validation_is_due(state, epoch=epoch, settings=settings):
            validated.append(epoch)
            state.record_validation({}, Validation({}, 0.0), seconds=3.0)
    assert validated == [1, 7, 13, 19, 25]
    state.step = 1000
    assert validation_is_due(state, epoch=30, settings=settings)
    assert validation_is_due(state, epoch=30, settings=TrainSettings())
    assert [validation_is_due(RunState(9), epoch=e, settings=TrainSettings(validate_every=2)) for e in (1, 2)] == [
        False,
        True,
    ]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="multiple of the 2 devices, got 3"):
        TrainSettings(devices=2, batch_size=3)


@pytest.mark.parametrize(
    ("augment", "enters_at"),
    [
        (Compose([HorizontalFlip(), ColorJitter()]), (90, 120)),
        (CropAndPad(0.2), (150, 200)),
        (RandomCrop((64, 64)), (240, 320)),
    ],
)
def test_a_large_image_is_made_smaller_before_it_is_augmented(augment, enters_at):
    scenes: Any = [Scenes(1, seed=3).scene(0)]  # all that is asked of the data set
    entered = []

    class Watched:
        zoom = getattr(augment, "zoom", None)

        def __call__(self, tensors, *, generator):
            entered.append((tuple(tensors["image"].shape[1:]), tuple(tensors["masks"].shape[1:])))
            return augment(tensors, generator=generator)

    loader = TrainLoader(
        scenes, Preprocess(shorter_side=90, longer_side=200), TrainSettings(epochs=1, seed=4), augment=Watched()
    )
    sample = loader.load(BatchIndex(0, 0, 0))
    assert entered == [(enters_at, enters_at)]
    assert len(sample["boxes"]) == len(sample["masks"])
    assert len(sample["boxes"]) > 0 or enters_at == (240, 320)  # a small window may be empty
    fitted = masks_to_boxes(sample["masks"])
    seen = sample["masks"].flatten(1).any(dim=1)
    assert (fitted - sample["boxes"].as_subclass(Tensor))[seen].abs().lt(4).all()


def test_flips_and_colours_are_the_same_before_and_after_the_image_is_made_smaller():
    scenes: Any = [Scenes(1, seed=3).scene(0)]  # all that is asked of the data set
    preprocess = Preprocess(shorter_side=90, longer_side=200)
    for seed in range(4):
        settings = TrainSettings(epochs=1, seed=seed)
        before = TrainLoader(scenes, preprocess, settings, augment=HorizontalFlip()).load(BatchIndex(0, 0, 0))
        generator = sample_generator(seed, 0, 0)
        after = preprocess.sample(HorizontalFlip()(to_tensors(scenes[0]), generator=generator))
        torch.testing.assert_close(before["image"], after["image"], atol=2e-4, rtol=0)
        torch.testing.assert_close(before["boxes"], after["boxes"])
        assert (before["masks"] != after["masks"]).float().mean() < 0.01  # a mirrored grid takes the neighbour's pixel


def test_images_are_enlarged_for_small_objects_alone(scenes: Dataset) -> None:
    def sized(side: float, *, size_hw: tuple[int, int] = (480, 640)) -> Dataset:
        assert scenes.objects is not None
        boxes = np.tile([10.0, 10.0, 10.0 + side, 10.0 + side], (len(scenes.objects), 1))
        images = replace(scenes.images, sizes_hw=np.tile(size_hw, (len(scenes), 1)))
        return replace(scenes, images=images, objects=replace(scenes.objects, boxes_xyxy=boxes))

    own = Preprocess(shorter_side=448, longer_side=448)
    assert size_for_labels(own, sized(100)) is own
    assert size_for_labels(own, sized(20)).longer_side == 640  # their own resolution
    assert size_for_labels(own, sized(80, size_hw=(3000, 4000))).longer_side == 896  # twice as large at most
    assert size_for_labels(own, sized(20, size_hw=(240, 320))) is own
    assert size_for_labels(own, sized(240, size_hw=(3000, 4000))).longer_side == 512
    usual = size_for_labels(Preprocess(shorter_side=600, longer_side=1000), sized(40, size_hw=(3000, 4000)))
    assert (usual.shorter_side, usual.longer_side) == (1190, 1984)
    fixed = Preprocess(fixed_hw=(300, 300))
    assert size_for_labels(fixed, sized(20)) is fixed


@pytest.mark.parametrize(("minutes", "step_s", "warned"), [(8.0, 1.0, False), (0.5, 4.0, True)])
def test_the_plan_of_a_budget_is_described(scenes: Dataset, minutes: float, step_s: float, warned: bool) -> None:
    loader = TrainLoader(scenes, PREPROCESS, TrainSettings(minutes=minutes, batch_size=4))
    state = RunState(
        total_steps=UNPLANNED, step=3, seconds=4 * step_s, seconds_of_steps=4 * step_s, first_step_s=2 * step_s
    )
    assert state.step_s == step_s
    steps = plan_steps(
        state, steps_per_epoch=3, minutes=minutes, validate_every=None, images_per_step=4, validation_images=12
    )
    state.plan(steps, warm_up=warm_up_fraction(steps, loader.settings))
    line, *warnings = describe_plan(state, loader=loader, preprocess=PREPROCESS, validates=True)
    assert line.startswith(
        f"{minutes:g} minutes allow about {steps} steps = {steps / 3:.2g} epochs of 12 images at 64 pixels, b"
    )
    assert "batch size 4, " in line
    assert line.endswith(("validations", "validation"))
    assert state.seconds_of_validation == pytest.approx(0.5 * step_s / 4 * 12)
    assert bool(warnings) == warned
    if warned:
        assert "too short to learn anything; give --minutes 3 or more" in warnings[0]


def test_a_validation_is_cheap_where_it_takes_a_tenth_of_the_budget() -> None:
    assert validation_is_cheap(0.5, images=240, minutes=10)
    assert not validation_is_cheap(0.5, images=241, minutes=10)


def test_a_changed_number_of_epochs_is_logged(
    scenes: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = iter([30, 60])
    monkeypatch.setattr(loop, "plan_steps", lambda *_, **__: next(plans, 60))
    monkeypatch.setattr(loop, "plan_is_due", lambda state, _: state.step in (1, 4))
    settings = TrainSettings(minutes=10, batch_size=4, device="cpu")
    loader = TrainLoader(scenes, PREPROCESS, settings)
    loop.fit(tiny_detector(), loader=loader, fabric=start_fabric(settings), progress=TrainProgress())
    messages = [line for line in capsys.readouterr().err.splitlines() if "now allow" in line]
    assert messages == ["10 minutes now allow 20 epochs instead of 10"]
