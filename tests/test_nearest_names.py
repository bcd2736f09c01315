"""Whatever is named wrongly: the error has the nearest of the names that there are."""

import pytest

from otus.data.conversion import convert
from otus.data.open import open_dataset
from otus.data.scenes.files import write_scenes
from otus.errors import OtusError, did_you_mean
from otus.evaluation.protocols import protocol_of
from otus.metrics.detection.rules import parse_rules
from otus.proposals.methods import make_proposer
from otus.structures import Categories
from otus.zoo.models import model_entry
from otus.zoo.weights import read_weights


def test_only_what_is_near_is_suggested():
    assert did_you_mean("Persn", ["dog", "person"]) == "; did you mean 'person'?"
    assert did_you_mean("zebra", ["dog", "person"]) == ""
    assert did_you_mean("zebra", []) == ""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    for seed, split in enumerate(("train", "val")):
        write_scenes(folder / split, 1, split=split, seed=seed)
    return folder


WRONG = {
    "mask_rcnn_resnet50_fpn": lambda scenes: model_entry("maskrcnn_resnet50_fpn"),
    "coco_v1": lambda scenes: read_weights("coco_v2", model="mask_rcnn_resnet50_fpn"),
    "voc07": lambda scenes: parse_rules("voc7"),
    "max_dets": lambda scenes: parse_rules("coco:max_det=10"),
    "boundary": lambda scenes: protocol_of("bundary"),
    "coco": lambda scenes: open_dataset(scenes, format="coc"),
    "yolo": lambda scenes: convert(scenes, scenes / "new", to="yollo"),
    "val": lambda scenes: open_dataset(scenes, split="vall"),
    "selective-search": lambda scenes: make_proposer("selectiv-search"),
    "dog": lambda scenes: Categories(("cat", "dog")).index("dogs"),
}


@pytest.mark.parametrize("meant", WRONG)
def test_errors_suggest_what_was_meant(meant, scenes):
    with pytest.raises(OtusError, match=f"did you mean '{meant}'"):
        WRONG[meant](scenes)


def test_a_name_that_another_begins_with_is_near_to_it_unless_it_is_hardly_one() -> None:
    names = ["ssd300_vgg16", "mask_rcnn_efficientnet_lite0_fpn"]
    assert did_you_mean("mask_rcn", names) == "; did you mean 'mask_rcnn_efficientnet_lite0_fpn'?"
    assert did_you_mean("", names) == did_you_mean("s", names) == ""
