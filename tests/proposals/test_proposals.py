"""Proposals of a data set: computed once, ignored if of another image or truncated, and transformed with their image."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from otus.data.dataset import Dataset, Images
from otus.data.image_writing import write_image
from otus.data.tensors import to_tensors
from otus.data.transforms.augmentation import HorizontalFlip
from otus.errors import DataError, ShapeError, UsageError
from otus.parts.preprocess import Preprocess
from otus.proposals.cache import ProposalCache, ProposedDataset
from otus.proposals.interface import Proposals
from otus.proposals.selective_search import SelectiveSearch
from otus.structures import Categories, Objects


@dataclass(frozen=True)
class Corners:
    """Propose boxes that grow from the corner, and record the images it is called for."""

    calls: list
    step: int = 1

    @property
    def parameters(self):
        return {"method": "corners", "step": self.step, "made_of": (1, 2)}

    def __call__(self, image):
        self.calls.append(image.shape)
        height, width = image.shape[:2]
        boxes = [[0, 0, side, side] for side in range(1, min(height, width) + 1, self.step)]
        return Proposals(np.array(boxes), np.linspace(1, 0.5, len(boxes)))


def a_dataset(folder, count=4, size_hw=(12, 20)):
    rng = np.random.default_rng(0)
    files = tuple(f"{i}.png" for i in range(count))
    for name in files:
        write_image(folder / name, rng.integers(0, 256, (*size_hw, 3)).astype(np.uint8))
    images = Images(folder, files, np.tile(size_hw, (count, 1)), tuple(range(count)))
    objects = Objects.build(image_index=range(count), labels=[0] * count, boxes_xyxy=[[2, 3, 8, 9]] * count)
    return Dataset(folder, "made up", images, Categories(("owl",)), objects)


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return a_dataset(folder)


def test_found_once_and_kept(dataset, tmp_path):
    proposer, reports = Corners([]), []
    cache = ProposalCache(tmp_path / "cache", proposer, 5)
    cache.fill(dataset, report=lambda done, total: reports.append((done, total)))
    assert len(proposer.calls) == 4
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]
    ProposalCache(tmp_path / "cache", proposer, 5).fill(
        dataset, report=lambda done, total: reports.append((done, total))
    )
    assert len(proposer.calls) == 4
    assert reports[4:] == reports[:4]
    proposed = ProposedDataset.of(dataset, cache)
    for index in range(4):
        expected = Corners([])(dataset.image(index)).best(5)
        np.testing.assert_array_equal(proposed[index].columns["proposals_xyxy"], expected.boxes_xyxy)
        np.testing.assert_array_equal(cache.read(dataset.image(index)).scores, expected.scores)
    assert len(proposer.calls) == 4


def test_files_that_hold_more_serve_and_those_that_hold_less_do_not(dataset, tmp_path):
    proposer, image = Corners([]), dataset.image(0)
    for count, num_calls in ((5, 1), (3, 1), (5, 1), (7, 2), (6, 2), (None, 3), (9, 3), (None, 3)):
        proposals = ProposalCache(tmp_path, proposer, count).proposals(image)
        assert len(proposals) == (12 if count is None else count)
        assert len(proposer.calls) == num_calls


def test_other_parameters_and_other_images_are_other_files(dataset, tmp_path):
    cache, other = ProposalCache(tmp_path, Corners([])), ProposalCache(tmp_path, Corners([], step=2))
    image = dataset.image(0)
    assert len(cache.proposals(image)) == 12
    assert len(other.proposals(image)) == 6
    assert len(cache.proposals(image)) == 12
    assert cache.path(image) != other.path(image)
    changed = image.copy()
    changed[3, 4, 1] ^= 1
    assert cache.read(changed) is None
    assert cache.path(np.zeros((2, 6, 3), np.uint8)) != cache.path(np.zeros((6, 2, 3), np.uint8))


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.6, 0.97])
def test_truncated_files_are_computed_again(dataset, tmp_path, fraction):
    proposer, image = Corners([]), dataset.image(0)
    cache = ProposalCache(tmp_path, proposer)
    proposals = cache.proposals(image)
    path = cache.path(image)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert cache.read(image) is None
    np.testing.assert_array_equal(cache.proposals(image).boxes_xyxy, proposals.boxes_xyxy)
    assert len(proposer.calls) == 2
    assert path.read_bytes() == content


def test_a_flipped_byte_does_not_change_the_proposals(dataset, tmp_path):
    image = dataset.image(0)
    cache = ProposalCache(tmp_path, Corners([]))
    proposals = cache.proposals(image)
    path = cache.path(image)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        cached = cache.read(image)
        if cached is not None:  # e.g. a date in the archive
            np.testing.assert_array_equal(cached.boxes_xyxy, proposals.boxes_xyxy)
            np.testing.assert_array_equal(cached.scores, proposals.scores)


def test_files_of_other_images_or_parameters_are_computed_again(dataset, tmp_path):
    cache, other = ProposalCache(tmp_path, Corners([])), ProposalCache(tmp_path, Corners([], step=3))
    image, second = dataset.image(0), dataset.image(1)
    cache.proposals(image)
    for wrong_cache, photo in ((other, image), (cache, second)):  # of other parameters, of another image
        path = wrong_cache.path(photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cache.path(image).read_bytes())
        assert wrong_cache.read(photo) is None
    path = cache.path(image)
    for content in ({"boxes_xyxy": np.zeros((1, 4))}, {"boxes_xyxy": np.zeros((2, 3)), "scores": np.zeros(2)}):
        np.savez(path, **content, header=np.array(json.dumps({"count": None, **cache._header(image)})))
        assert cache.read(image) is None
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").replace(path)
    assert cache.read(image) is None
    path.write_text("not an archive")
    assert cache.read(image) is None
    assert len(cache.proposals(image)) == 12


def test_several_processes_find_the_same_and_go_on_where_a_run_was_stopped(dataset, tmp_path):
    search = SelectiveSearch()
    serial, parallel = (ProposalCache(tmp_path / name, search, 20) for name in ("alone", "together"))
    serial.fill(dataset)
    parallel.proposals(dataset.image(2))
    cached_file = parallel.path(dataset.image(2))
    before = cached_file.stat().st_mtime_ns
    reports = []
    parallel.fill(dataset, workers=2, report=lambda done, total: reports.append(done))
    assert reports == [1, 2, 3, 4]
    assert cached_file.stat().st_mtime_ns == before
    for index in range(4):
        image = dataset.image(index)
        np.testing.assert_array_equal(serial.read(image).boxes_xyxy, parallel.read(image).boxes_xyxy)
    assert not list((tmp_path / "together").rglob(".*"))


def test_an_image_that_cannot_be_read_is_named_also_from_another_process(dataset, tmp_path):
    (dataset.images.root / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png"):
        ProposalCache(tmp_path / "cache", SelectiveSearch()).fill(dataset, workers=2)
    with pytest.raises(UsageError, match="workers"):
        ProposalCache(tmp_path / "cache", SelectiveSearch()).fill(dataset, workers=0)


def test_a_folder_that_cannot_be_written_to_is_named(dataset, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(DataError, match="cache"):
        ProposalCache(tmp_path / "cache", Corners([])).proposals(dataset.image(0))


def test_proposals_stay_with_chosen_images(dataset, tmp_path):
    proposed = ProposedDataset.of(dataset, ProposalCache(tmp_path / "cache", Corners([]), 3))
    chosen = proposed.select([2, 0])
    assert isinstance(chosen, ProposedDataset)
    assert [sample.key for sample in chosen] == ["2.png", "0.png"]
    assert all(len(sample.columns["proposals_xyxy"]) == 3 for sample in chosen)
    again = ProposedDataset.of(proposed, ProposalCache(tmp_path / "cache", Corners([]), 2))
    assert len(again[0].columns["proposals_xyxy"]) == 2


def test_they_move_with_the_image(dataset, tmp_path):
    cache = ProposalCache(tmp_path / "cache", Corners([]), 4)
    sample = ProposedDataset.of(dataset, cache)[0]
    boxes = torch.tensor(sample.columns["proposals_xyxy"])
    tensors = to_tensors(sample)
    np.testing.assert_array_equal(tensors["proposals"], boxes)
    flipped = HorizontalFlip(probability=1.0)(tensors, generator=torch.Generator().manual_seed(0))
    mirrored = torch.stack([20 - boxes[:, 2], boxes[:, 1], 20 - boxes[:, 0], boxes[:, 3]], dim=1)
    np.testing.assert_array_equal(flipped["proposals"], mirrored)
    larger = Preprocess(fixed_hw=(24, 60)).sample(tensors)
    np.testing.assert_allclose(larger["proposals"], boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))


def test_no_proposals_are_a_defined_answer(dataset, tmp_path):
    @dataclass(frozen=True)
    class Nothing:
        parameters = {"method": "nothing"}  # noqa: RUF012

        def __call__(self, image):
            return Proposals([], [])

    cache = ProposalCache(tmp_path / "cache", Nothing())
    assert len(cache.proposals(dataset.image(0))) == 0
    assert cache.read(dataset.image(0)).boxes_xyxy.shape == (0, 4)
    sample = ProposedDataset.of(dataset, cache)[1]
    assert to_tensors(sample)["proposals"].shape == (0, 4)


def test_proposals_are_checked():
    with pytest.raises(ShapeError, match=r"expected scores of shape \(2,\), one per box, got \(1,\)"):
        Proposals(np.zeros((2, 4)), [1.0])
    with pytest.raises(ShapeError, match=r"\(N, 4\)"):
        Proposals(np.zeros((2, 5)), [1.0, 0.5])
    proposals = Proposals(np.zeros((3, 4)), [3, 2, 1])
    assert len(proposals.best(None)) == len(proposals.best(9)) == 3
    assert proposals.best(2).scores.tolist() == [3, 2]
    with pytest.raises(UsageError, match="count"):
        proposals.best(-1)
