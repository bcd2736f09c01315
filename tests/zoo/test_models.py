import inspect
import json

import pytest
import torch
from torch import nn
from torchvision.models import detection, segmentation
from torchvision.ops import FrozenBatchNorm2d

import otus
from otus.errors import UsageError
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import OBJECT, PROMPTABLE
from otus.structures import Categories
from otus.zoo.coco import COCO, COCO_IDS, COCO_PANOPTIC, COCO_PERSON
from otus.zoo.models import MODELS, build_model, model_entry
from otus.zoo.torchvision_checkpoints import ZERO_EPS_SHA256
from otus.zoo.voc import VOC_WITH_BACKGROUND


def test_every_model_can_be_built_by_name_and_described():
    for entry in MODELS.values():
        assert next(iter(inspect.signature(entry.builder).parameters)) == "categories"
        assert entry.paper.startswith("https://")
        assert Preprocess.from_dict(json.loads(json.dumps(entry.preprocess.to_dict()))) == entry.preprocess
        for weights in entry.weights.values():
            if entry.task is PROMPTABLE:  # its files are named by another hash, and their authors published no figures
                assert len(weights.sha256) == 64
                assert weights.categories == OBJECT
                continue
            assert f"-{weights.sha256}.pth" in weights.url
            assert weights.figures
            by_task = {"semantic": 21, "keypoints": 1, "panoptic": 133}
            assert len(weights.categories) == by_task.get(entry.task.name, 80)


def test_hashes_of_checkpoints_made_without_eps_are_those_of_the_first_resnets():
    first = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn")
    hashes = [MODELS[f"{name}_resnet50_fpn"].weights["coco_v1"].sha256 for name in first]
    assert sorted(hashes) == sorted(ZERO_EPS_SHA256)


def test_hashes_and_categories_are_torchvisions():
    for entry in MODELS.values():
        for weights in entry.weights.values():
            if not weights.url.startswith("https://download.pytorch.org/"):
                continue
            name = weights.url.rsplit("/", 1)[1]
            known = [
                one.url
                for enum in (*vars(detection).values(), *vars(segmentation).values())
                if inspect.isclass(enum) and hasattr(enum, "DEFAULT")
                for one in enum
            ]
            assert any(url.endswith(name) for url in known)
    names = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert [names[id] for id in COCO_IDS] == list(COCO)
    labels = segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert labels[1:] == list(VOC_WITH_BACKGROUND)[1:]
    assert (
        list(COCO_PERSON.keypoints[0][1].names)
        == (detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"])
    )


def test_official_detrs_have_their_published_figures():
    entries = {name: entry.weights["coco"] for name, entry in MODELS.items() if name.startswith("detr_resnet")}
    assert {name: round(100 * one.figures["COCO val2017 bbox AP"], 1) for name, one in entries.items()} == {
        "detr_resnet50": 42.0,
        "detr_resnet50_dc5": 43.3,
        "detr_resnet101": 43.5,
        "detr_resnet101_dc5": 44.9,
    }
    assert all(one.licence == "Apache-2.0" for one in entries.values())
    panoptic = {name: entry.weights for name, entry in MODELS.items() if name.startswith("panoptic_detr_resnet")}
    assert {name: several["coco_panoptic"].figures["COCO val2017 PQ"] for name, several in panoptic.items()} == {
        "panoptic_detr_resnet50": 0.434,
        "panoptic_detr_resnet50_dc5": 0.446,
        "panoptic_detr_resnet101": 0.451,
    }


def test_errors_of_unknown_names_and_arguments_list_the_known_ones():
    with pytest.raises(UsageError, match=r"did you mean 'mask_rcnn_resnet50_fpn'\?"):
        model_entry("mask_rcnn_resnet5_fpn")
    with pytest.raises(UsageError, match="does not take depth; it takes class_indices, freezing"):
        build_model("faster_rcnn_resnet50_fpn", COCO, {"depth": 3})


def test_the_original_detector_learns_and_predicts():
    model = build_model("faster_rcnn_vgg16", Categories(("cat",)))
    sample = {"image": torch.rand(3, 64, 80), "boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([0])}
    assert all(value.isfinite() for value in model.losses([sample]).values())
    assert model.predict([sample])[0].size_hw == (64, 80)
    assert model.box_head.network.fc7.out_features == 4096
    assert model.proposer.post_nms_top_n == 300
    convs = [m for m in model.region_features.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.weight.requires_grad for conv in convs] == [False] * 4 + [True] * 9


def test_freezing_as_json_keeps_the_defaults_of_missing_fields():
    arguments = {"freezing": {"norm_eps": 0.25}}
    model = build_model("faster_rcnn_mobilenet_v3_large_320_fpn", Categories(("a",)), arguments)
    norms = [layer for layer in model.modules() if isinstance(layer, FrozenBatchNorm2d)]
    assert {norm.eps for norm in norms} == {0.25}
    assert len(norms) == 46
    frozen = {name.split(".")[2] for name, tensor in model.named_parameters() if not tensor.requires_grad}
    assert frozen == {str(layer) for layer in range(7)}  # the builder's own level: 3
    assert arguments == {"freezing": {"norm_eps": 0.25}}


def test_panoptic_categories_are_those_of_the_data(shared_data):
    dataset = otus.open_dataset(shared_data / "coco_panoptic", split="val")
    assert dataset.panoptic.categories.names == COCO_PANOPTIC.names
    assert dataset.panoptic.categories.ids == COCO_PANOPTIC.ids
    assert dataset.panoptic.categories.is_thing == COCO_PANOPTIC.is_thing
