"""Every column of a sample moves with the image.

The chief trick: an image whose red and green are each pixel's own x and y. Wherever a point goes, the colour under it says
where it came from. And object i is segment i + 1 of a scene's panoptic map, so the map says where its mask should be.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from otus.data.open import open_dataset
from otus.data.sample import Sample
from otus.data.scenes.generator import Scenes
from otus.data.tensors import TensorSample, object_keys, sample_generator, to_tensors
from otus.data.transforms.augmentation import (
    ColorJitter,
    Compose,
    CropAndPad,
    HorizontalFlip,
    RandomCrop,
    ResizeLongestSide,
    ScaleJitter,
    Transform,
    ZoomToObject,
    geometry,
)
from otus.data.transforms.mixing import CopyPaste, Mosaic
from otus.errors import ShapeError
from otus.structures import Categories, Instances, KeypointNames

SIZE_HW = (72, 96)
SCENES = Scenes(10_000, size_hw=SIZE_HW, seed=1)
RAMP = 256  # a power of two, so that dividing by it loses nothing


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads only get in one another's way on images this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scene(index: int) -> TensorSample:
    """A scene whose proposals are its boxes; ``row`` numbers the objects."""
    sample = SCENES.scene(index)
    instances = sample.instances.with_columns(row=np.arange(len(sample.instances)))
    return to_tensors(replace(sample, instances=instances, columns={"proposals_xyxy": instances.boxes_xyxy}))


def ramp_scene(index: int) -> TensorSample:
    tensors = scene(index)
    image = torch.zeros(3, *SIZE_HW)
    image[0] = (torch.arange(SIZE_HW[1]) + 0.5) / RAMP
    image[1] = (torch.arange(SIZE_HW[0])[:, None] + 0.5) / RAMP
    return tensors | {"image": tv_tensors.Image(image)}


def draw(generator: torch.Generator) -> TensorSample:
    return scene(int(torch.randint(len(SCENES), (), generator=generator)))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)


def assert_equal(a: TensorSample, b: TensorSample) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(plain(value), plain(b[key]), rtol=0, atol=0, equal_nan=True, msg=key)
        else:
            assert value == b[key], key


def assert_whole(tensors: TensorSample, *, shrunk: bool) -> None:
    """What must hold after whatever transform of a scene; shrinking may lose the tips of a mask, not its box."""
    size_hw = geometry.size_hw(tensors)
    assert {len(tensors[key]) for key in object_keys(tensors)} == {len(tensors["labels"])}
    for key in ("boxes", "proposals", "amodal_boxes", "keypoints", "corners"):
        assert tuple(tensors[key].canvas_size) == size_hw
    for key in ("masks", "amodal_masks", "semantic", "panoptic"):
        assert type(tensors[key]) is tv_tensors.Mask
        assert tensors[key].shape[-2:] == size_hw
    assert (tensors["masks"] <= tensors["amodal_masks"]).all()
    for boxes, masks in (("boxes", "masks"), ("amodal_boxes", "amodal_masks")):
        seen = tensors[masks].flatten(1).any(1)
        beyond = (geometry.masks_to_boxes(tensors[masks]) - plain(tensors[boxes]))[seen]
        beyond[:, :2] *= -1  # how far each side of the mask's box lies outside the object's
        assert (beyond <= 1).all()
        assert shrunk or (beyond >= -1).all()
    for label, mask in zip(tensors["labels"], tensors["masks"], strict=True):
        assert (tensors["semantic"][mask] == label).all()
        ids = tensors["panoptic"][mask].unique()
        assert len(ids) <= 1
        if len(ids):
            assert torch.equal(tensors["panoptic"] == ids, mask)
            assert {s.label for s in tensors["segments"] if s.id == ids} == {int(label)}


def test_each_object_is_flipped_by_the_keypoints_of_its_own_category() -> None:
    categories = Categories(
        ("car", "person", "dog", "owl"),
        keypoints=(
            ("car", KeypointNames(("front", "middle", "back"))),
            ("person", KeypointNames(("nose", "left_eye", "right_eye"))),
            ("dog", KeypointNames(("left_ear", "right_ear"))),
            ("owl", KeypointNames(("beak", "tail", "left_wing", "right_wing"))),  # of no object
        ),
    )
    keypoints = np.full((3, 3, 3), 2.0)
    keypoints[..., 0] = [1, 2, 3]
    keypoints[2, 2] = 0
    instances = Instances([[0, 0, 8, 6]] * 3, [0, 1, 2], (6, 8), categories, keypoints=keypoints)
    before = to_tensors(Sample(np.zeros((6, 8, 3), np.uint8), "a.png", instances=instances))
    after = HorizontalFlip(1.0)(before, generator=sample_generator(0, 0, 0))
    assert plain(after["keypoints"])[..., 0].tolist() == [[7, 6, 5], [7, 5, 6], [6, 7, 8]]
    assert after["visibility"].tolist() == [[2, 2, 2], [2, 2, 2], [2, 2, 0]]


def test_a_column_may_have_the_name_of_another_key() -> None:
    names = ("visibility", "keypoints", "flip_order", "image", "label", "segments", "region", "corners")
    instances = Instances(
        [[1, 1, 5, 5]], [0], (6, 8), Categories(("cat",)), columns={name: np.array([0.8]) for name in names}
    )
    before = to_tensors(Sample(np.zeros((6, 8, 3), np.uint8), "a.png", instances=instances))
    assert set(before) == {"image", "key", "boxes", "labels", "is_crowd", "areas"}
    for transform in (HorizontalFlip(1.0), CropAndPad(), ZoomToObject(1.0), Mosaic(lambda _: before, (6, 8))):
        assert set(transform(before, generator=sample_generator(0, 0, 0))) == set(before)


CUTS = st.lists(
    st.sampled_from(
        [
            HorizontalFlip(1.0),
            CropAndPad(0.3),
            ZoomToObject(1.0),
            RandomCrop((40, 60)),
            RandomCrop((72, 50)),
            RandomCrop((110, 130), min_visibility=0.0),
        ]
    ),
    max_size=4,
)
RESIZES = st.sampled_from([None, ScaleJitter(0.6, 2.2), ResizeLongestSide(150), ResizeLongestSide(61)])


@given(st.integers(0, 999), RESIZES, CUTS, st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_chain_moves_every_column_together(
    index: int, resize: Transform | None, cuts: list[Transform], seed: int
) -> None:
    before = ramp_scene(index)
    after = Compose([*([resize] if resize else []), *cuts])(before, generator=sample_generator(seed, 0, index))
    assert_whole(after, shrunk=resize is not None)
    for row, mask in zip(after["row"], after["masks"], strict=True):
        assert torch.equal(after["panoptic"] == row + 1, mask)
    flips = sum(isinstance(cut, HorizontalFlip) for cut in cuts)
    order = before["flip_order"][after["row"]] if flips % 2 else torch.arange(4)
    came_from = plain(before["keypoints"])[after["row"][:, None], order]
    labelled = after["visibility"] > 0
    points = plain(after["keypoints"])[labelled]
    x, y = points.long().unbind(-1)
    colours = plain(after["image"])[:2, y, x].T * RAMP
    tolerance = 2.0 if resize else 0.501  # half a pixel, and the smoothing of antialiasing at the border
    assert ((colours - came_from[labelled]).abs() <= tolerance).all()
    for (nose, left, right, _), seen in zip(plain(after["keypoints"]), labelled, strict=True):
        if seen.all():  # left is still left when the nose is up
            a, b = left - nose, right - nose
            assert a[0] * b[1] - a[1] * b[0] < 0


@given(st.integers(0, 999), RESIZES, CUTS, st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_boxes_proposals_and_corners_that_agree_go_on_agreeing(
    index: int, resize: Transform | None, cuts: list[Transform], seed: int
) -> None:
    before = {key: value for key, value in scene(index).items() if "masks" not in key}
    left, top, right, bottom = plain(before["boxes"]).unbind(1)
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=1).reshape(-1, 4, 2)
    before["corners"] = tv_tensors.KeyPoints(corners, canvas_size=SIZE_HW)
    steps = [
        replace(cut, min_visibility=0.0) if isinstance(cut, RandomCrop | CropAndPad | ZoomToObject) else cut
        for cut in cuts
    ]
    generator = partial(sample_generator, seed, 0, index)
    after = Compose([*([resize] if resize else []), *steps])(before, generator=generator())
    assert torch.equal(after["boxes"], after["proposals"])
    if not cuts or all(isinstance(cut, HorizontalFlip) for cut in cuts):
        around = torch.cat([plain(after["corners"])[:, 0], plain(after["corners"])[:, 2]], dim=1)
        torch.testing.assert_close(around, plain(after["boxes"]))
    once = Compose([*([resize] if resize else []), *cuts])(before, generator=generator())
    proposals = {tuple(box) for box in once["proposals"].tolist()}
    assert {tuple(box) for box in once["boxes"].tolist()} <= proposals


@given(st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_flipping_twice_changes_nothing(index: int) -> None:
    before = scene(index)
    after = geometry.horizontal_flip(geometry.horizontal_flip(before))
    for key in ("keypoints", "corners"):
        torch.testing.assert_close(plain(after.pop(key)), plain(before.pop(key)), rtol=0, atol=1e-4)
    assert_equal(after, before)


@given(st.integers(0, 999), st.floats(1, 3))
@settings(max_examples=15, deadline=None)
def test_enlarged_masks_fill_their_boxes(index: int, scale: float) -> None:
    assert_whole(ScaleJitter(scale, scale)(scene(index), generator=torch.Generator()), shrunk=False)


@pytest.mark.parametrize("to_hw", [(36, 48), (144, 192), (50, 131), (1, 1)])
def test_resizing_agrees_with_torchvision(to_hw: tuple[int, int]) -> None:
    before = scene(3)
    after = geometry.resize(before, to_hw)
    nearest = functional.InterpolationMode.NEAREST_EXACT
    for key in ("masks", "amodal_masks", "semantic"):
        values = plain(before[key]).to(torch.uint8).reshape(-1, *SIZE_HW)
        oracle = functional.resize(values, list(to_hw), interpolation=nearest)
        assert torch.equal(plain(after[key]).to(torch.uint8).reshape(oracle.shape), oracle)
    for key in ("image", "boxes", "keypoints", "corners", "proposals"):
        torch.testing.assert_close(after[key], functional.resize(before[key], list(to_hw), antialias=True))
    torch.testing.assert_close(after["areas"], before["areas"] * (to_hw[0] * to_hw[1] / (72 * 96)))


@pytest.mark.parametrize("window", [(10, 20, 30, 40), (-5, 30, 60, 90), (-20, -30, 120, 160), (80, 0, 20, 20)])
def test_cropping_agrees_with_torchvision(window: tuple[int, int, int, int]) -> None:
    top, left, height, width = window
    before = scene(4)
    after = geometry.crop(before, top=top, left=left, to_hw=(height, width), min_visibility=0.0, fill=0.0)
    torch.testing.assert_close(after["image"], functional.crop(before["image"], *window))
    torch.testing.assert_close(after["masks"], functional.crop(before["masks"], *window)[after["row"]])
    torch.testing.assert_close(after["corners"], functional.crop(before["corners"], *window)[after["row"]].clone())
    inside = plain(functional.crop(before["masks"], *window)).flatten(1).any(1)
    assert inside.nonzero()[:, 0].tolist() == after["row"].tolist()


def test_what_a_crop_leaves_of_an_object_decides() -> None:
    """An L of 20 columns whose foot is cut off; a crowd; an object without an outline; one outside."""
    masks = torch.zeros(4, 40, 40, dtype=torch.bool)
    masks[0, 0:30, 0:4] = True
    masks[0, 30:36, 0:20] = True
    masks[1, 28:40, 28:40] = True
    sample = {
        "image": tv_tensors.Image(torch.zeros(3, 40, 40)),
        "key": "l",
        "boxes": tv_tensors.BoundingBoxes(
            [[0, 0, 20, 36.5], [28, 28, 40, 40], [10, 10, 20, 40], [31, 31, 39, 39.0]],
            format="XYXY",
            canvas_size=(40, 40),
        ),
        "labels": torch.arange(4),
        "is_crowd": torch.tensor([False, True, False, False]),
        "areas": torch.tensor([240.0, 144, 300, 64]),
        "masks": tv_tensors.Mask(masks),
    }
    left = geometry.crop(sample, top=0, left=0, to_hw=(30, 30))
    assert left["labels"].tolist() == [0, 1, 2]
    assert left["boxes"].tolist() == [[0, 0, 4, 30], [28, 28, 30, 30], [10, 10, 20, 30]]
    torch.testing.assert_close(left["areas"], torch.tensor([120.0, 4, 200]))
    assert geometry.crop(sample, top=0, left=0, to_hw=(30, 30), min_visibility=0.6)["labels"].tolist() == [1, 2]
    whole = geometry.crop(sample, top=0, left=0, to_hw=(50, 50))
    assert whole["boxes"].tolist()[0] == [0, 0, 20, 36.5]  # nothing was cut: the box is as it was given


def test_photometric_changes_the_image_alone_and_stays_in_range() -> None:
    before = scene(0)
    after = ColorJitter(0.8, 0.8, 0.8, 0.3)(before, generator=sample_generator(1, 0, 0))
    assert (after["image"] - before["image"]).abs().mean() > 0.02
    assert after["image"].min() >= 0
    assert after["image"].max() <= 1
    assert_equal(after | {"image": before["image"]}, before)
    assert_equal(ColorJitter(0, 0, 0, 0)(before, generator=sample_generator(1, 0, 0)), before)


@given(st.integers(0, 999), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_mosaic_and_copy_paste_keep_every_column_together(index: int, seed: int) -> None:
    before = scene(index)
    joined = Mosaic(draw, (100, 120))(before, generator=sample_generator(seed, 0, index))
    assert geometry.size_hw(joined) == (100, 120)
    assert_whole(joined, shrunk=True)
    assert not (joined["semantic"] == 255).any()
    pasted = CopyPaste(draw, probability=1, share=0.7)(before, generator=sample_generator(seed, 0, index))
    assert_whole(pasted, shrunk=False)
    seen = pasted["visibility"]
    points = plain(pasted["keypoints"]).long()
    for i, j in (seen == 2).nonzero().tolist():
        assert pasted["masks"][i, points[i, j, 1], points[i, j, 0]]
    for i, j in (seen == 1).nonzero().tolist():
        assert not pasted["masks"][i, points[i, j, 1], points[i, j, 0]]


def test_mosaic_shows_four_images() -> None:
    colours = iter(torch.eye(3))

    def plain_colour(_: torch.Generator) -> TensorSample:
        return {"image": tv_tensors.Image(next(colours)[:, None, None].expand(3, 20, 30)), "key": "x"}

    black = {"image": tv_tensors.Image(torch.zeros(3, 25, 25)), "key": "x", "label": torch.tensor(1)}
    joined = Mosaic(plain_colour, (40, 40))(black, generator=sample_generator(0, 0, 0))
    corners = plain(joined["image"])[:, [0, 0, -1, -1], [0, -1, 0, -1]].T
    assert torch.equal(corners, torch.cat([torch.zeros(1, 3), torch.eye(3)]))
    assert "label" not in joined


@given(st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_copy_paste_hides_what_it_covers_and_nothing_else(index: int) -> None:
    def theirs(generator: torch.Generator) -> TensorSample:
        other = draw(generator)
        return other | {"own": torch.zeros(len(other["labels"]), dtype=torch.bool)}

    before = scene(index)
    before["own"] = torch.ones(len(before["labels"]), dtype=torch.bool)
    after = CopyPaste(theirs, probability=1, share=1.0)(before, generator=sample_generator(0, 0, index))
    own = after["own"]
    assert not own.all()
    cover = plain(after["masks"])[~own].any(0)
    visible = plain(before["masks"]) & ~cover
    share = visible.sum((1, 2)) / before["masks"].sum((1, 2))
    rows = after["row"][own]
    assert rows.tolist() == (share >= geometry.MIN_VISIBILITY).nonzero()[:, 0].tolist()
    assert torch.equal(plain(after["masks"])[own], visible[rows])
    assert torch.equal(plain(after["amodal_masks"])[own], plain(before["amodal_masks"])[rows])
    torch.testing.assert_close(after["areas"][own], (before["areas"] * share)[rows])
    assert torch.equal((after["image"] != before["image"]).any(0) | cover, cover)
    assert (after["image"] != before["image"]).any(0)[cover].float().mean() > 0.9


def test_moved_borders_change_scale_and_shape_within_their_share() -> None:
    sizes = [
        geometry.size_hw(CropAndPad(0.2)(scene(0), generator=sample_generator(0, 0, index))) for index in range(200)
    ]
    heights, widths = np.array(sizes).T / np.array(SIZE_HW)[:, None]
    for sides in (heights, widths):
        assert 0.6 <= sides.min() < 0.7
        assert 1.3 < sides.max() <= 1.4
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.3  # each side on its own
    assert_equal(CropAndPad(0.0)(scene(0), generator=sample_generator(0, 0, 0)), scene(0))
    with pytest.raises(ShapeError, match=r"\[0, 0\.5\)"):
        CropAndPad(0.5)


def test_a_window_around_an_object_contains_it_and_is_no_smaller_than_the_zoom_allows() -> None:
    zoomed = 0
    for index in range(60):
        before = scene(index)
        after = ZoomToObject(0.5, context=2.0, zoom=3.0)(before, generator=sample_generator(0, 0, index))
        height, width = geometry.size_hw(after)
        if (height, width) == SIZE_HW:
            continue
        zoomed += 1
        assert height >= SIZE_HW[0] / 3
        assert width >= SIZE_HW[1] / 3
        old, new = plain(before["boxes"])[after["row"]], plain(after["boxes"])
        whole = ((old[:, 2:] - old[:, :2]) == (new[:, 2:] - new[:, :2])).all(dim=1)
        assert whole.any()
    assert 20 < zoomed < 40
    without = {key: value for key, value in scene(0).items() if key != "boxes"}
    assert ZoomToObject(1.0)(without, generator=torch.Generator()) is without
    with pytest.raises(ShapeError, match="at least 1"):
        ZoomToObject(zoom=0.5)


EVERYTHING = Compose(
    [
        Mosaic(draw, (80, 80), probability=0.5),
        CopyPaste(draw),
        HorizontalFlip(),
        ScaleJitter(),
        ZoomToObject(),
        CropAndPad(),
        RandomCrop((64, 64)),
        ColorJitter(),
    ]
)


class Epoch(Dataset):
    """A few transformed scenes, as a loader of training samples has them."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> TensorSample:
        return EVERYTHING(scene(index), generator=sample_generator(7, 1, index))


def test_the_same_generator_gives_the_same_bits_whatever_the_workers() -> None:
    global_state = torch.get_rng_state()
    alone = [Epoch()[i] for i in range(8)]
    assert torch.equal(torch.get_rng_state(), global_state), "nothing draws from the global generator"
    for first, again in zip(alone, [Epoch()[i] for i in range(8)], strict=True):
        assert_equal(first, again)
    loader = DataLoader(Epoch(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for first, loaded in zip(alone, loader, strict=True):
        assert_equal(first, loaded)
    other = EVERYTHING(scene(0), generator=sample_generator(7, 2, 0))
    assert other["image"].shape != alone[0]["image"].shape or (other["image"] != alone[0]["image"]).any()


@given(st.integers(0, 999))
@settings(max_examples=10, deadline=None)
def test_what_is_given_stays_as_it_was(index: int) -> None:
    before, copy = scene(index), scene(index)
    EVERYTHING(before, generator=sample_generator(0, 0, index))
    assert_equal(before, copy)


def test_images_without_objects_and_without_labels() -> None:
    image = tv_tensors.Image(torch.rand(3, 20, 30))
    bare: dict[str, Any] = {"image": image, "key": "bare"}
    unlabelled = EVERYTHING(bare, generator=sample_generator(0, 0, 1))
    assert geometry.size_hw(unlabelled) == (64, 64)
    empty = geometry.select_objects(scene(0), torch.zeros(len(scene(0)["labels"]), dtype=torch.bool))
    for index in range(5):
        after = EVERYTHING(empty, generator=sample_generator(0, 0, index))
        assert after["boxes"].shape[1] == 4
        assert after["masks"].shape[1:] == (64, 64)


def test_a_scale_that_cannot_be_is_refused() -> None:
    with pytest.raises(ShapeError, match="0 < low <= high, got 0 and 2"):
        ScaleJitter(0, 2)


def test_real_images_with_crowds_and_keypoints(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "coco")
    crowded = [i for i in range(len(dataset)) if dataset.instances(i).columns["is_crowd"].any()][:10]
    chain = Compose([HorizontalFlip(1.0), ScaleJitter(1.0, 1.6), RandomCrop((256, 256))])
    crowds = 0
    for index in crowded:
        before = to_tensors(dataset[index])
        after = chain(before, generator=sample_generator(0, 0, index))
        # Their boxes are up to a few pixels off their own polygons: no transform may add more than scale and rounding.
        off = (geometry.masks_to_boxes(before["masks"]) - plain(before["boxes"])).abs().amax()
        moved = (geometry.masks_to_boxes(after["masks"]) - plain(after["boxes"])).abs()
        assert moved.amax() <= 1.6 * off + 1
        assert (plain(after["boxes"])[:, 2:] > plain(after["boxes"])[:, :2]).all()
        crowds += int(after["is_crowd"].sum())
    assert crowds
