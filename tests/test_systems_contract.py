"""One contract for every trainable system: a new one adds a row to ``SYSTEMS``.

Backbones are tiny, so that each row takes seconds.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision import tv_tensors

from otus.data.sample import Sample
from otus.data.tensors import TensorSample, bounding_boxes, to_tensors
from otus.detection.region_based.fast_rcnn import fast_rcnn
from otus.detection.region_based.faster_rcnn import RegionProposalNetwork, faster_rcnn
from otus.detection.region_based.rcnn import rcnn
from otus.detection.region_based.region_detector import RegionDetector
from otus.detection.region_based.sliding_window import sliding_window
from otus.detection.region_based.spp_net import SpatialPyramidPooling, spp_net
from otus.detection.regression import SingleObjectDetector
from otus.detection.set_prediction.detr import DETRHead
from otus.detection.set_prediction.query_selection_detr import QuerySelectionHead
from otus.detection.set_prediction.set_detector import SetDetector
from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.fcos import fcos
from otus.detection.single_stage.oriented_fcos import oriented_fcos
from otus.detection.single_stage.retinanet import octave_scales, retinanet
from otus.detection.single_stage.rpn_classifier import rpn_classifier
from otus.detection.single_stage.ssd import DefaultBoxGenerator, ssd
from otus.detection.single_stage.ssdlite import SSDLiteExtractor, SSDLiteHead
from otus.detection.single_stage.yolo import YOLO
from otus.inference.predictor import Predictor
from otus.instance.keypoint_rcnn import keypoint_rcnn
from otus.instance.mask_rcnn import mask_rcnn
from otus.parts.backbones import Backbone, LayeredBackbone
from otus.parts.backbones.feature_pyramid import ConvolutionLevels, FeaturePyramid
from otus.parts.backbones.norms import LenientBatchNorm
from otus.parts.backbones.with_fpn import BackboneWithFPN
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.locations import location_generator
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.preprocess import Preprocess
from otus.parts.regions.crops import WarpedCrops
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.proposals.interface import Proposals
from otus.proposals.proposers import PrecomputedProposals, SlidingWindowProposer
from otus.proposals.windows import sliding_windows
from otus.semantic.deconvnet import deconvolution_network
from otus.semantic.deeplabv3 import deeplab_head
from otus.semantic.dilated import dilated_segmenter, fcn_head
from otus.semantic.fcn import fcn
from otus.semantic.full_resolution import full_resolution
from otus.semantic.lraspp import lraspp
from otus.semantic.segmenter import Segmenter
from otus.semantic.segnet import segnet
from otus.semantic.sliding_window import sliding_window_segmenter
from otus.semantic.unet import unet
from otus.structures import Categories, Instances, KeypointNames, SemanticScores
from otus.structures.boxes import pairwise_iou
from otus.zoo.checkpoint import CheckpointHeader, load_checkpoint, load_into, save_checkpoint

PLAIN = Preprocess(fixed_hw=(64, 96), mean=(0.5,) * 3, std=(0.25,) * 3)
CATEGORIES = Categories(("bright", "dark"), keypoints=(("bright", KeypointNames(("corner", "centre"))),))


def tiny_backbone(levels: tuple[int, ...]) -> LayeredBackbone:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())

    layers = {"c1": block(3, 8), "c2": block(8, 16), "c3": block(16, 32), "c4": block(32, 32)}
    return LayeredBackbone(layers, levels=levels)


def pyramid_detector() -> RegionDetector:
    backbone = tiny_backbone((2, 3, 4))
    maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides), pyramid=FeaturePyramid(backbone.channels, 16))
    proposer = RegionProposalNetwork(
        16, GridAnchorGenerator([[12], [24], [48], [96]]), post_nms_top_n=50, train_post_nms_top_n=50
    )
    return faster_rcnn(maps, proposer, CATEGORIES, representation_size=32)


def single_map_detector() -> RegionDetector:
    backbone = tiny_backbone((3,))
    maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    proposer = RegionProposalNetwork(
        maps.out_channels, GridAnchorGenerator([[12, 24, 48]]), post_nms_top_n=50, train_post_nms_top_n=50
    )
    return faster_rcnn(maps, proposer, CATEGORIES, representation_size=32)


FEW_WINDOWS = partial(sliding_windows, scales=(0.7, 0.5, 0.35), stride=0.25)
SOME = BalancedSampler(batch_size_per_image=32, positive_fraction=0.5)


def proposals_of_windows() -> PrecomputedProposals:
    def search(photo: np.ndarray) -> Proposals:
        windows = FEW_WINDOWS(photo.shape[:2])
        return Proposals(windows, np.linspace(1, 0, len(windows)))

    return PrecomputedProposals(200, search=search)


def warped_crops() -> WarpedCrops:
    return WarpedCrops(tiny_backbone((3,)), crop_size=24, context=2, chunk_size=40)


def sliding_detector() -> RegionDetector:
    return sliding_window(
        warped_crops(), CATEGORIES, proposer=SlidingWindowProposer(FEW_WINDOWS), representation_size=32, sampler=SOME
    )


def crop_detector() -> RegionDetector:
    return rcnn(warped_crops(), CATEGORIES, proposer=proposals_of_windows(), representation_size=32, sampler=SOME)


def pyramid_pooling_detector() -> RegionDetector:
    maps = SpatialPyramidPooling(tiny_backbone((3,)), bins=(4, 2, 1))
    return spp_net(maps, CATEGORIES, proposer=proposals_of_windows(), representation_size=32, sampler=SOME)


def roi_pooling_detector() -> RegionDetector:
    backbone = tiny_backbone((3,))
    maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    return fast_rcnn(maps, CATEGORIES, proposer=proposals_of_windows(), representation_size=32, sampler=SOME)


def levels() -> BackboneWithFPN:
    backbone = tiny_backbone((3, 4))
    extra = ConvolutionLevels(64, 64, count=1)
    return BackboneWithFPN(backbone, FeaturePyramid(backbone.channels, 64, extra_levels=extra))


def telling(detector: DenseDetector) -> DenseDetector:
    """That reports what it is not sure of: one that knows nothing says background nearly everywhere."""
    detector.postprocess = replace(detector.postprocess, score_threshold=0.005, max_detections=50)
    return detector


def default_box_detector() -> DenseDetector:
    backbone = tiny_backbone((3, 4))
    maps = SSDLiteExtractor(backbone, backbone.channels, (16, 16), LenientBatchNorm)
    boxes = DefaultBoxGenerator([[2]] * 4, [0.1, 0.3, 0.5, 0.7, 0.9])
    head = partial(SSDLiteHead, norm_layer=LenientBatchNorm)
    return ssd(maps, maps.channels, boxes, CATEGORIES, head=head)


def grid_detector() -> YOLO:
    network = nn.Sequential(nn.Conv2d(32, 16, 1), nn.ReLU())
    sizes = {"in_channels": 16, "hidden_features": 64, "dropout": 0.0, "grid_size": 5}
    system = YOLO(categories=CATEGORIES, backbone=tiny_backbone((3,)), conv=network, **sizes)
    nn.init.normal_(system.fc[3].weight, std=0.2)  # it would say nothing at first
    return system


def set_detector() -> SetDetector:
    sizes = {
        "embed_dim": 32,
        "num_heads": 4,
        "ffn_dim": 64,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_queries": 12,
    }
    head = DETRHead(32, (0, 1), **sizes, dropout=0.0)
    return SetDetector(categories=CATEGORIES, backbone=tiny_backbone((3,)), head=head)


def query_selection_detector() -> SetDetector:
    backbone = tiny_backbone((2, 3, 4))
    head = QuerySelectionHead(
        backbone.channels, backbone.strides, 2, embed_dim=32, num_heads=4, ffn_dim=64, num_layers=2, num_queries=12
    )
    return SetDetector(categories=CATEGORIES, backbone=backbone, head=head, size_divisor=16)


SYSTEMS: dict[str, Callable[[], RegionDetector | SingleObjectDetector | DenseDetector | YOLO | SetDetector]] = {
    "yolo": grid_detector,
    "detr": set_detector,
    "query_selection_detr": query_selection_detector,
    "rpn_classifier": lambda: telling(rpn_classifier(levels(), GridAnchorGenerator([[20], [40], [80]]), CATEGORIES)),
    "retinanet": lambda: telling(
        retinanet(
            levels(), GridAnchorGenerator(octave_scales(16, 32, 64)), CATEGORIES, head_norm="group", box_loss="giou"
        )
    ),
    "ssd": default_box_detector,
    "fcos": lambda: telling(fcos(levels(), location_generator((8, 16, 32)), CATEGORIES)),
    "oriented_fcos": lambda: telling(oriented_fcos(levels(), location_generator((8, 16, 32)), CATEGORIES)),
    "regression": lambda: SingleObjectDetector(tiny_backbone((3,)), CATEGORIES, representation_size=32),
    "sliding_window": sliding_detector,
    "rcnn": crop_detector,
    "spp_net": pyramid_pooling_detector,
    "fast_rcnn": roi_pooling_detector,
    "faster_rcnn": pyramid_detector,
    "faster_rcnn_single_map": single_map_detector,
    "mask_rcnn": lambda: mask_rcnn(pyramid_detector(), hidden_channels=8),
    "keypoint_rcnn": lambda: keypoint_rcnn(pyramid_detector(), hidden_channels=8, num_convs=2),
    "mask_and_keypoint_rcnn": lambda: keypoint_rcnn(
        mask_rcnn(single_map_detector(), hidden_channels=8), hidden_channels=8, num_convs=2
    ),
}

PIXEL_CATEGORIES = Categories(("grey", "bright", "dark"))


def fcn_that_differs() -> Segmenter:
    """Its classifiers are 0 at first, as the paper's: all would say the same."""
    system = fcn(tiny_backbone((2, 3, 4)), PIXEL_CATEGORIES)
    for classifier in system.decoder.classifiers:
        nn.init.normal_(classifier.weight, std=0.1)
    return system


SEGMENTERS: dict[str, Callable[[], Segmenter]] = {
    "sliding_window_segmenter": lambda: sliding_window_segmenter(PIXEL_CATEGORIES, widths=(8, 8)),
    "sliding_window_alone": lambda: sliding_window_segmenter(PIXEL_CATEGORIES, widths=(8, 8), shared=False),
    "full_resolution": lambda: full_resolution(PIXEL_CATEGORIES, widths=(8, 8, 8)),
    "fcn": fcn_that_differs,
    "fcn_dilated": lambda: dilated_segmenter(tiny_backbone((2, 3)), PIXEL_CATEGORIES, head=fcn_head),
    "deeplabv3": lambda: dilated_segmenter(tiny_backbone((2, 3)), PIXEL_CATEGORIES, head=deeplab_head),
    "lraspp": lambda: lraspp(tiny_backbone((2, 4)), PIXEL_CATEGORIES),
    "segnet": lambda: segnet(PIXEL_CATEGORIES, widths=(8, 12, 16), depths=(1, 1, 2)),
    "deconvolution_network": lambda: deconvolution_network(
        PIXEL_CATEGORIES, widths=(8, 12, 16), depths=(1, 1, 2), vector=32
    ),
    "unet": lambda: unet(PIXEL_CATEGORIES, widths=(8, 12, 16)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small networks only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> RegionDetector:
    torch.manual_seed(0)
    return SYSTEMS[request.param]()


@pytest.fixture(params=SEGMENTERS)
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    return SEGMENTERS[request.param]()


@pytest.fixture(params=[*SYSTEMS, *SEGMENTERS])
def any_system(request: pytest.FixtureRequest) -> RegionDetector | Segmenter:
    torch.manual_seed(0)
    return (SYSTEMS | SEGMENTERS)[request.param]()


def photo(height: int, width: int, boxes: list[list[int]], labels: list[int], *, key: str = "made") -> TensorSample:
    """Bright and dark rectangles on grey noise, with masks and two keypoints each, and the category of each pixel."""
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height)) * 0.1 + 0.4
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    points = torch.zeros(len(boxes), 2, 2)
    semantic = torch.zeros(height, width, dtype=torch.int64)
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True)):
        image[:, y1:y2, x1:x2] = 1.0 - label
        masks[i, y1:y2, x1:x2] = True
        semantic[y1:y2, x1:x2] = 1 + label
        points[i] = torch.tensor([[x1, y1], [(x1 + x2) / 2, (y1 + y2) / 2]])
    return {
        "image": tv_tensors.Image((image - 0.5) / 0.25),
        "key": key,
        "boxes": bounding_boxes(np.array(boxes).reshape(-1, 4), (height, width)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "is_crowd": torch.zeros(len(boxes), dtype=torch.bool),
        "masks": tv_tensors.Mask(masks),
        "semantic": tv_tensors.Mask(semantic),
        "keypoints": tv_tensors.KeyPoints(points, canvas_size=(height, width)),
        "visibility": torch.full((len(boxes), 2), 2),
    }


def images() -> list[TensorSample]:
    return [
        photo(64, 96, [[8, 8, 40, 30], [50, 20, 90, 60]], [0, 1]),
        photo(80, 48, [[4, 30, 30, 70]], [1]),
    ]


def backbone_of(system: nn.Module) -> LayeredBackbone:
    return next(part for part in system.modules() if isinstance(part, LayeredBackbone))


def losses(system: RegionDetector, samples: list[TensorSample]) -> dict[str, Tensor]:
    return system.train().losses(samples, generator=torch.Generator().manual_seed(1))


def equal(first: list[Instances | SemanticScores], second: list[Instances | SemanticScores]) -> bool:
    if isinstance(first[0], SemanticScores):
        return all(np.array_equal(a.scores, b.scores) for a, b in zip(first, second, strict=True))
    return all(
        np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.scores, b.scores)
        and (a.masks is None or np.array_equal(a.masks.dense(), b.masks.dense()))
        and (a.keypoints is None or np.array_equal(a.keypoints, b.keypoints))
        for a, b in zip(first, second, strict=True)
    )


def test_losses_are_finite_and_reach_every_parameter(any_system):
    found = losses(any_system, images())
    assert all(value.isfinite() and value.ndim == 0 for value in found.values())
    sum(found.values()).backward()
    without = [
        name for name, parameter in any_system.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not without


def test_forward_gives_the_tensors_of_what_predict_finds_on_images_of_several_sizes(system):
    samples = [{"image": sample["image"]} for sample in (*images(), *images()[:1])]
    record = system.eval().stages(samples, postprocess=system.postprocess)
    expected = system.tensors(record)
    with torch.inference_mode():
        found = system(record.batch.images, torch.tensor(record.batch.sizes_hw))
    assert found.keys() == expected.keys()
    order = [torch.argsort(one["image_index"] * 10 - one["scores"]) for one in (found, expected)]
    for name in expected:
        torch.testing.assert_close(found[name][order[0]], expected[name][order[1]], atol=1e-3, rtol=1e-4)
    assert len(expected["boxes"]) > 0


def test_losses_are_the_same_for_the_same_generator(any_system):
    first, second = losses(any_system, images()), losses(any_system, images())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("nothing", ["no_objects", "crowds_only", "boxes_without_area", "no_masks_no_keypoints"])
def test_losses_are_finite_where_there_is_little_to_learn(system, nothing):
    samples = images()
    for i, sample in enumerate(samples):
        if nothing == "no_objects":
            samples[i] = photo(64, 96, [], [])
        elif nothing == "crowds_only":
            sample["is_crowd"] = torch.ones_like(sample["is_crowd"])
        elif nothing == "boxes_without_area":
            sample["boxes"][:, 2] = sample["boxes"][:, 0]
        else:
            del sample["masks"], sample["keypoints"], sample["visibility"]
    found = losses(system, samples)
    assert all(value.isfinite() for value in found.values())
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in system.parameters() if parameter.requires_grad)
    if nothing != "no_masks_no_keypoints":
        assert float(found.get("box", torch.zeros(())).detach()) == 0


def test_a_crowd_teaches_neither_object_nor_background(system):
    crowded = photo(64, 64, [[0, 0, 64, 64]], [0])
    crowded["is_crowd"][:] = True
    found = losses(system, [crowded])
    if isinstance(system, DenseDetector):
        regions, none = torch.tensor([[10.0, 10.0, 30.0, 30.0], [60.0, 0.0, 90.0, 64.0]]), torch.zeros(0, 4)
        assert system.assigner(regions, none, crowds=torch.tensor([[0.0, 0.0, 64.0, 64.0]])).tolist() == [-2, -1]
        return
    assert float(found["class"].detach()) == 0
    if not isinstance(system, RegionDetector):  # it knows no background, or is tested beside its parts
        return
    matcher = getattr(system.proposer, "matcher", system.box_head.matcher)
    inside = matcher(
        torch.tensor([[10.0, 10.0, 30.0, 30.0], [60.0, 0.0, 90.0, 64.0]]),
        torch.zeros(0, 4),
        crowds=torch.tensor([[0.0, 0.0, 64.0, 64.0]]),
    )
    assert inside.tolist() == [-2, -1]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (33, 7), (65, 130)])
def test_any_size_is_predicted_and_learned_from(system, size_hw):
    (found,) = system.predict([{"image": torch.rand(3, *size_hw)}])
    assert found.size_hw == size_hw
    assert found.categories is CATEGORIES
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= np.array([size_hw[1], size_hw[0]] * 2)).all()
    assert all(value.isfinite() for value in losses(system, [photo(*size_hw, [], [])]).values())


def test_no_backbone_pads_images_unknown_to_its_system(system):
    """Where the map lies on the image is reckoned from the batch's size."""
    if isinstance(system, SingleObjectDetector):
        return  # it reckons nothing from its map
    seen = []
    for backbone in (module for module in system.modules() if isinstance(module, Backbone)):
        backbone.register_forward_pre_hook(
            lambda backbone, given: seen.append((backbone.min_size, given[0].shape[-2:]))
        )
    samples = [photo(9, 70, [[1, 1, 8, 60]], [0])]
    losses(system, samples)
    system.predict(samples)
    assert len(seen) >= 2
    assert all(side <= min(size_hw) for side, size_hw in seen)


def test_a_image_of_one_pixel_goes_through_preprocessing(any_system):
    preprocess = Preprocess(shorter_side=64, longer_side=96)
    sample = to_tensors(Sample(np.zeros((1, 1, 3), dtype=np.uint8), "dot"))
    (found,) = any_system.predict([preprocess.sample(sample)])
    assert preprocess.undo(found, (1, 1)).size_hw == (1, 1)


def test_a_image_is_answered_alike_alone_and_in_a_batch(system):
    samples = [photo(64, 96, [[8, 8, 40, 30]], [0]), photo(64, 96, [[50, 20, 90, 60]], [1])]
    together, alone = system.predict(samples), [system.predict([sample])[0] for sample in samples]
    for a, b in zip(together, alone, strict=True):
        assert len(a) == len(b) > 0
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
        # The batch is padded, so sums run in another order: scores that agree but for the last digits may change places,
        # and which of them is the last that is reported.
        alike = np.abs(a.boxes_xyxy[:, None] - b.boxes_xyxy[None]).max(axis=2) < 1e-3
        alike &= (a.labels[:, None] == b.labels) & (np.abs(a.scores[:, None] - b.scores) < 1e-5)
        rows, columns = linear_sum_assignment(~alike)
        assert (alike[rows, columns] | (a.scores[rows] < a.scores.min() + 1e-5)).all()


def test_prediction_is_deterministic_and_restores_the_mode_of_each_part(any_system):
    any_system.train()
    frozen = next(part for part in any_system.modules() if not list(part.children()))
    frozen.eval()
    assert equal(any_system.predict(images()), any_system.predict(images()))
    assert any_system.training
    assert not frozen.training
    assert all(part.training for part in any_system.children())


@pytest.mark.parametrize("training", [False, True])
def test_threads_answer_each_by_its_own_options(system, training):
    """Thresholds, NMS and categories travel with the call, and the mode of no part is switched for its time."""
    predictor = Predictor(system, preprocess=PLAIN, name="one", device="cpu")
    image = (images()[0]["image"].permute(1, 2, 0).numpy() * 63 + 127).round().astype(np.uint8)
    scores = predictor.predict(image, score_threshold=0.0)[0].instances.scores
    options = [
        {"score_threshold": 0.0, "nms_iou": 0.9},
        {"score_threshold": float(np.median(scores)), "categories": ["dark"]},
        {"score_threshold": {"bright": float(scores.max() * 0.9), "dark": 0.0}, "nms_iou": 0.1},
    ]
    system.train(training)
    before = {name: vars(part).copy() for name, part in system.named_modules()}
    alone = [predictor.predict(image, **one) for one in options]
    together = threading.Barrier(len(options), timeout=60)

    def many_times(index: int) -> list[list[Instances]]:
        torch.set_num_threads(1)
        together.wait()
        return [predictor.predict(image, **options[index]) for _ in range(4)]

    with ThreadPoolExecutor(len(options)) as pool:
        answers = list(pool.map(many_times, range(len(options))))
    for expected, found in zip(alone, answers, strict=True):
        assert all(equal([one.instances for one in several], [one.instances for one in expected]) for several in found)
    counts = [len(one.instances) for (one,) in alone]
    assert counts[0] >= max(counts) > min(counts)
    assert {name: vars(part) for name, part in system.named_modules()} == before


def test_one_tile_that_covers_the_image_equals_no_tiles(system):
    predictor = Predictor(system, preprocess=PLAIN, name="one", device="cpu")
    image = (images()[0]["image"].permute(1, 2, 0).numpy() * 63 + 127).round().astype(np.uint8)
    (whole,), (tiled,) = (predictor.predict(image, score_threshold=0.0, tiles=tiles) for tiles in (None, 96))
    assert len(whole.instances) > 0
    assert equal([tiled.instances], [whole.instances])


def test_categories_and_their_thresholds_come_before_every_limit(system):
    """One kind of object must not fill the places of another that alone is asked for."""
    if isinstance(system, SingleObjectDetector):
        return  # it answers one category, whatever is asked for
    if isinstance(system, DenseDetector):
        limit = {"top_k_per_level": 2} if hasattr(system.scores, "top_k_per_level") else {"top_k_per_class": 2}
        system.scores = replace(system.scores, **limit)
    if isinstance(getattr(system, "head", None), DETRHead):
        nn.init.normal_(system.head.query_embed.weight, std=30.0)  # else one category is the likeliest of every query
        nn.init.normal_(system.head.class_embed.weight, std=3.0)
    everything = replace(system.postprocess, score_threshold=0.0, nms_iou=1.0, max_detections=10**6)
    (several,) = system.predict(images()[:1], postprocess=everything)
    common, rare = np.bincount(several.labels, minlength=2).argsort(kind="stable")[::-1]
    (rarely,) = system.predict(images()[:1], postprocess=replace(everything, labels=(int(rare),)))
    (commonly,) = system.predict(images()[:1], postprocess=replace(everything, labels=(int(common),)))
    assert set(rarely.labels) <= {rare}
    assert len(rarely) + len(commonly) >= len(several) > 0
    (limited,) = system.predict(images()[:1], postprocess=replace(everything, labels=(int(rare),), max_detections=3))
    assert equal([limited], [rarely[:3]])
    assert len(limited) > 0
    never = tuple(1.0 if label == common else 0.0 for label in (0, 1))  # the common ones are never so sure
    (sure,) = system.predict(images()[:1], postprocess=replace(everything, score_thresholds=never, max_detections=3))
    assert equal([sure], [limited])


def test_saved_and_loaded_it_answers_the_same(any_system, tmp_path, request):
    header = CheckpointHeader(categories=any_system.categories)
    save_checkpoint(tmp_path / "tiny.safetensors", any_system.state_dict(), header)
    torch.manual_seed(1)
    other = (SYSTEMS | SEGMENTERS)[request.node.callspec.params["any_system"]]()
    assert not equal(other.predict(images()), any_system.predict(images()))
    load_into(other, load_checkpoint(tmp_path / "tiny.safetensors")[0], source="tiny.safetensors")
    assert equal(other.predict(images()), any_system.predict(images()))


def test_the_record_of_a_pass_agrees_with_what_is_predicted(system):
    record = system.stages(images())
    found = system.predict(images())
    for i, (candidates, kept, one) in enumerate(zip(record.candidates, record.kept, found, strict=True)):
        turned = one.oriented_boxes_xywhr
        np.testing.assert_array_equal(candidates[kept].boxes, one.boxes_xyxy if turned is None else turned)
        assert (candidates.scores > system.postprocess.score_threshold).all()
        if isinstance(system, DenseDetector):
            assert int(candidates.origins.max()) < sum(map(len, record.anchors))
            continue
        if isinstance(system, RegionDetector):
            regions = record.proposals.boxes[i]
            assert len(record.scores[i]) == len(regions) >= int(candidates.origins.max()) + 1
    step = {DenseDetector: "head", SetDetector: "answers", YOLO: "grid"}.get(type(system), "regions")
    assert set(record.milliseconds) >= {"batch", "maps", step, "postprocess"}


def test_what_export_sees_agrees_with_what_is_predicted(system):
    samples = [photo(64, 96, [[8, 8, 40, 30]], [0]), photo(64, 96, [], [])]
    with torch.inference_mode():
        raw = system.eval()(torch.stack([sample["image"] for sample in samples]), torch.tensor([[64, 96]] * 2))
    found = system.predict(samples)
    for i, one in enumerate(found):
        boxes = one.boxes_xyxy if one.oriented_boxes_xywhr is None else one.oriented_boxes_xywhr
        np.testing.assert_allclose(raw["boxes"][raw["image_index"] == i], boxes, atol=1e-4)


def test_under_autocast_boxes_and_losses_stay_float32(system):
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(system, images())
        predicted = system.predict(images())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in found.values())
    assert all(one.boxes_xyxy.dtype == np.float32 for one in predicted)


def test_a_tiny_set_is_overfitted(system):
    samples = images()[:1]
    steps, rate = 250, 1e-3 if isinstance(system, SetDetector) else 3e-3
    if getattr(system, "keypoint_head", None) is not None:
        steps = 400  # where a third head pulls at one small map, learning takes longer
    optimizer = torch.optim.AdamW(system.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        found = system.train().losses(samples, generator=torch.Generator().manual_seed(step))
        sum(found.values()).backward()
        nn.utils.clip_grad_norm_(system.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    (one,) = system.predict(samples)
    sure = one[one.scores > 0.5]
    sure, truth = sure[np.argsort(sure.labels)], samples[0]
    if isinstance(system, SingleObjectDetector):  # the largest alone
        truth = photo(64, 96, [[50, 20, 90, 60]], [1])
    elif isinstance(system, DenseDetector) or (
        isinstance(system, RegionDetector)
        and system.box_head.matcher.negative_iou < system.box_head.matcher.positive_iou
    ):
        # Neutral regions are not learned from: some beside an object may be named too. The best of each category counts.
        sure = one[[int(np.flatnonzero(one.labels == label)[0]) for label in (0, 1)]]
        assert (sure.scores > 0.5).all()
    np.testing.assert_array_equal(sure.labels, truth["labels"])
    if getattr(system, "proposer", None) is not None and system.box_head.matcher.negative_iou < 0.5:
        # That best region may be a neutral one, which was not taught where to move; it is none that was background.
        assert (np.diag(pairwise_iou(sure.boxes_xyxy, truth["boxes"].numpy())) > 0.3).all()
        return
    np.testing.assert_allclose(sure.boxes_xyxy, truth["boxes"], atol=4)
    if sure.masks is not None:
        drawn, masks = sure.masks.dense(), truth["masks"].numpy()
        assert ((drawn & masks).sum(axis=(1, 2)) / (drawn | masks).sum(axis=(1, 2)) > 0.8).all()
    if sure.keypoints is not None:
        np.testing.assert_allclose(sure.keypoints[..., :2], truth["keypoints"], atol=6)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 500), (33, 7), (65, 130)])
def test_every_pixel_of_any_image_is_labelled_and_learned_from(segmenter, size_hw):
    (found,) = segmenter.predict([{"image": torch.rand(3, *size_hw)}])
    assert found.scores.shape == (3, *size_hw)
    assert found.categories is PIXEL_CATEGORIES
    assert all(value.isfinite() for value in losses(segmenter, [photo(*size_hw, [], [])]).values())
    predictor = Predictor(segmenter, preprocess=Preprocess(), name="one", device="cpu")
    (prediction,) = predictor.predict(np.zeros((*size_hw, 3), np.uint8))
    assert prediction.semantic.size_hw == size_hw


def test_a_segmented_image_is_answered_alike_alone_and_in_a_batch(segmenter):
    """Those of another size are padded: their scores agree where the padding is not seen."""
    samples = [photo(64, 96, [[8, 8, 40, 30]], [0]), photo(64, 96, [[50, 20, 90, 60]], [1])]
    together, alone = segmenter.predict(samples), [segmenter.predict([sample])[0] for sample in samples]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    sizes = [one.size_hw for one in segmenter.predict(images())]
    assert sizes == [(64, 96), (80, 48)]


def test_exported_logits_are_those_of_the_record_and_of_the_results(segmenter):
    samples = [photo(64, 96, [[8, 8, 40, 30]], [0]), photo(64, 96, [], [])]
    record = segmenter.stages(samples)
    with torch.inference_mode():
        raw = segmenter.eval()(record.batch.images, torch.tensor(record.batch.sizes_hw))
    assert set(raw) == {"logits"}
    torch.testing.assert_close(raw["logits"], record.logits)
    for one, logits in zip(segmenter.predict(samples), record.logits, strict=True):
        np.testing.assert_array_equal(one.scores, logits)
    assert set(record.milliseconds) >= {"batch", "encoder", "decoder"}


def test_under_autocast_logits_and_losses_stay_float32(segmenter):
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(segmenter, images())
        record = segmenter.stages(images())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in found.values())
    assert record.logits.dtype == torch.float32


def test_a_tiny_set_is_segmented_as_labelled(segmenter):
    if not getattr(segmenter.encoder, "shared", True):
        return  # the same network as the one with shared features, and slow
    samples = images()
    normalised = any(isinstance(part, nn.BatchNorm2d | nn.GroupNorm) for part in segmenter.modules())
    steps = 80 if normalised else 300
    optimizer = torch.optim.AdamW(segmenter.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        sum(segmenter.train().losses(samples, generator=torch.Generator().manual_seed(step)).values()).backward()
        optimizer.step()
        schedule.step()
    for one, sample in zip(segmenter.predict(samples), samples, strict=True):
        labels = one.resized(one.size_hw).labels
        assert (labels == sample["semantic"].numpy()).mean() > 0.93
