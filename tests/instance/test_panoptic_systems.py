"""Panoptic systems with tiny backbones: the contract of all systems, with panoptic maps instead of boxes."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from typer.testing import CliRunner, Result

import otus
from otus.cli import app
from otus.data.formats import coco_panoptic
from otus.data.sample import Sample
from otus.data.tensors import TensorSample, to_tensors
from otus.detection.region_based.faster_rcnn import RegionProposalNetwork, faster_rcnn
from otus.detection.set_prediction.detr import DETRHead
from otus.detection.set_prediction.set_detector import SetDetector
from otus.errors import ShapeError, UsageError
from otus.inference.predictor import Predictor
from otus.instance.mask_rcnn import mask_rcnn
from otus.instance.panoptic import merge_panoptic
from otus.instance.panoptic_detr import PanopticDETR, merge_queries
from otus.instance.panoptic_fpn import PanopticFPN, panoptic_fpn, thing_categories
from otus.metrics.panoptic import PanopticQuality
from otus.parts.backbones import LayeredBackbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.parts.tasks import PANOPTIC
from otus.reports.explain.panoptic import explain_panoptic
from otus.structures import Categories, PanopticMap, Segment
from otus.training.fine_tuning import load_pretrained
from otus.zoo.checkpoint import CheckpointHeader, load_checkpoint, load_into, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry, build_model
from otus.zoo.weights import read_weights

CATEGORIES = Categories(("ground", "bright", "sky", "dark"), is_thing=(False, True, False, True))
PLAIN = Preprocess(fixed_hw=(64, 96), mean=(0.5,) * 3, std=(0.25,) * 3)


def tiny_backbone(levels: tuple[int, ...]) -> LayeredBackbone:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())

    layers = {"c1": block(3, 8), "c2": block(8, 16), "c3": block(16, 32), "c4": block(32, 32)}
    return LayeredBackbone(layers, levels=levels)


def tiny_fpn(categories: Categories = CATEGORIES) -> PanopticFPN:
    backbone = tiny_backbone((2, 3, 4))
    maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides), pyramid=FeaturePyramid(backbone.channels, 16))
    anchors = GridAnchorGenerator([[12], [24], [48], [96]])
    proposer = RegionProposalNetwork(16, anchors, post_nms_top_n=50, train_post_nms_top_n=50)
    detector = faster_rcnn(maps, proposer, thing_categories(categories), representation_size=32)
    return panoptic_fpn(categories, mask_rcnn(detector, hidden_channels=8))


def tiny_detr(*, freeze_detector: bool = False) -> PanopticDETR:
    sizes = {"embed_dim": 32, "num_heads": 8, "ffn_dim": 64, "num_encoder_layers": 1, "num_decoder_layers": 2}
    head = DETRHead(32, range(4), **sizes, num_queries=12, dropout=0.0)
    detector = SetDetector(categories=CATEGORIES, backbone=tiny_backbone((1, 2, 3, 4)), head=head)
    return PanopticDETR(detector, freeze_detector=freeze_detector)


SYSTEMS = {"panoptic_fpn": tiny_fpn, "panoptic_detr": tiny_detr}
EVERYTHING = Postprocess(score_threshold=0.0, nms_iou=0.7)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> PanopticFPN | PanopticDETR:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return SYSTEMS[request.param]()


def photo(height: int, width: int, boxes: list[list[int]], labels: list[int]) -> TensorSample:
    """Return a sample of bright and dark rectangles over sky and ground; the leftmost column is void."""
    image = torch.full((3, height, width), 0.65)
    image[:, height // 2 :] = 0.35
    ids = torch.full((height, width), 50)
    ids[height // 2 :] = 40
    segments = [Segment(40, 0), Segment(50, 2)]
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True), start=1):
        image[:, y1:y2, x1:x2] = 1.0 if label == 1 else 0.0
        ids[y1:y2, x1:x2] = i
        segments.append(Segment(i, label))
    ids[:, 0] = 0
    image += torch.rand(3, height, width, generator=torch.Generator().manual_seed(height)) * 0.05
    present = set(ids.unique().tolist())
    return {
        "image": tv_tensors.Image((image - 0.5) / 0.25),
        "key": "made",
        "panoptic": tv_tensors.Mask(ids),
        "segments": [segment for segment in segments if segment.id in present],
    }


def images() -> list[TensorSample]:
    return [photo(64, 96, [[8, 8, 40, 30], [50, 20, 90, 60]], [1, 3]), photo(80, 48, [[4, 30, 30, 70]], [3])]


def losses(system: nn.Module, samples: list[TensorSample]) -> dict[str, Tensor]:
    return system.train().losses(samples, generator=torch.Generator().manual_seed(1))


def predict(system: nn.Module, samples: list[TensorSample], **options: Postprocess) -> list[PanopticMap]:
    """Return the panoptic maps of prepared images, at their own sizes."""
    sizes_hw = [tuple(sample["image"].shape[1:]) for sample in samples]
    results = system.predict(samples, **options)
    return [result.resized(size_hw) for result, size_hw in zip(results, sizes_hw, strict=True)]


def equal(first: list[PanopticMap], second: list[PanopticMap]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(np.array_equal(a.ids, b.ids) and a.segments == b.segments for a, b in pairs)


def test_losses_are_finite_the_same_again_and_reach_every_parameter(system):
    first, again = losses(system, images()), losses(system, images())
    assert all(value.isfinite() and value.ndim == 0 for value in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert set(first) >= ({"mask", "semantic"} if isinstance(system, PanopticFPN) else {"mask", "dice", "giou"})
    sum(first.values()).backward()
    assert not [
        name for name, parameter in system.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


@pytest.mark.parametrize("nothing", ["no_things", "crowds_only", "void", "a_segment_without_pixels"])
def test_losses_are_finite_where_there_is_little_to_learn(system, nothing):
    samples = images()
    for i, sample in enumerate(samples):
        if nothing == "no_things":
            samples[i] = photo(64, 96, [], [])
        elif nothing == "crowds_only":
            sample["segments"] = [replace(segment, is_crowd=segment.label in (1, 3)) for segment in sample["segments"]]
        elif nothing == "void":
            sample["panoptic"] = tv_tensors.Mask(torch.zeros_like(sample["panoptic"]))
        else:
            sample["segments"].append(Segment(99, 1))
    values = losses(system, samples)
    assert all(value.isfinite() for value in values.values())
    sum(values.values()).backward()
    assert not [
        name for name, parameter in system.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if nothing == "void" and isinstance(system, PanopticFPN):
        assert float(values["semantic"].detach()) == 0


def test_samples_without_valid_panoptic_maps_are_refused(system):
    bare = images()[0]
    del bare["panoptic"]
    with pytest.raises(ShapeError, match="sample made: expected a panoptic map"):
        losses(system, [bare])
    wrong = images()[0]
    wrong["segments"].append(Segment(99, 4))
    with pytest.raises(ShapeError, match="labels from 0 to 3, got 4 of segment 99"):
        losses(system, [wrong])


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (33, 7), (65, 130)])
def test_any_size_is_predicted_and_learned_from(system, size_hw):
    (panoptic,) = predict(system, [{"image": torch.rand(3, *size_hw)}], postprocess=EVERYTHING)
    assert panoptic.size_hw == size_hw
    assert panoptic.categories is CATEGORIES
    assert all(value.isfinite() for value in losses(system, [photo(*size_hw, [], [])]).values())


def test_an_image_of_one_pixel_goes_through_preprocessing(system):
    preprocess = Preprocess(shorter_side=64, longer_side=96)
    sample = to_tensors(Sample(np.zeros((1, 1, 3), dtype=np.uint8), "dot"))
    (result,) = system.predict([preprocess.sample(sample)], postprocess=EVERYTHING)
    assert preprocess.undo(result, (1, 1)).size_hw == (1, 1)


def test_prediction_is_deterministic_and_restores_the_mode(system):
    system.train()
    assert equal(predict(system, images()), predict(system, images()))
    assert system.training


def test_saved_and_loaded_it_predicts_the_same(system, tmp_path, request):
    save_checkpoint(tmp_path / "tiny.safetensors", system.state_dict(), CheckpointHeader(categories=CATEGORIES))
    torch.manual_seed(1)
    other = SYSTEMS[request.node.callspec.params["system"]]()

    def panoptic_maps(system: nn.Module) -> list[PanopticMap]:
        return predict(system, images(), postprocess=EVERYTHING)

    assert not equal(panoptic_maps(other), panoptic_maps(system))
    load_into(other, load_checkpoint(tmp_path / "tiny.safetensors")[0], source="tiny.safetensors")
    assert equal(panoptic_maps(other), panoptic_maps(system))


def test_threads_predict_each_with_its_own_options(system):
    predictor = Predictor(system, preprocess=PLAIN, name="one", device="cpu")
    image = (images()[0]["image"].permute(1, 2, 0).numpy() * 63 + 127).round().astype(np.uint8)
    options = [{"score_threshold": 0.0, "nms_iou": 0.9}, {"score_threshold": 0.9}, {"categories": ["dark", "sky"]}]
    serial = [predictor.predict(image, **values)[0].panoptic for values in options]
    barrier = threading.Barrier(len(options), timeout=60)

    def many_times(index: int) -> list[PanopticMap]:
        torch.set_num_threads(1)
        barrier.wait()
        return [predictor.predict(image, **options[index])[0].panoptic for _ in range(3)]

    with ThreadPoolExecutor(len(options)) as pool:
        parallel = list(pool.map(many_times, range(len(options))))
    for expected, repeated in zip(serial, parallel, strict=True):
        assert equal(repeated, [expected] * len(repeated))
    assert {CATEGORIES[segment.label] for segment in serial[2].segments} <= {"dark", "sky"}


def test_what_export_sees_has_the_shapes_of_the_batch(system):
    with torch.inference_mode():
        images = torch.stack([photo(64, 96, [[8, 8, 40, 30]], [1])["image"]] * 2)
        raw = system.eval()(images, torch.tensor([[64, 96]] * 2))
    if isinstance(system, PanopticFPN):
        assert raw["semantic_logits"].shape == (2, 3, 64, 96)
    else:
        assert raw["mask_logits"].shape == (len(raw["boxes"]), 32, 48)


def test_under_autocast_losses_stay_float32(system):
    with torch.autocast("cpu", torch.bfloat16):
        values = losses(system, images())
        system.predict(images(), postprocess=EVERYTHING)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values.values())


def test_a_tiny_set_is_overfitted(system):
    samples = images()[:1]
    steps, rate = (250, 2e-3) if isinstance(system, PanopticDETR) else (150, 3e-3)
    optimizer = torch.optim.AdamW(system.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        sum(system.train().losses(samples, generator=torch.Generator().manual_seed(step)).values()).backward()
        nn.utils.clip_grad_norm_(system.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    (predicted,) = predict(system, samples, postprocess=replace(system.postprocess, score_threshold=0.5))
    ground_truth = PanopticMap(samples[0]["panoptic"].numpy(), tuple(samples[0]["segments"]), CATEGORIES)
    assert PanopticQuality(CATEGORIES).update(ground_truth, predicted).compute().figures["PQ"] > 0.8


def test_panoptic_fpn_merges_its_outputs_and_weights_their_losses():
    torch.manual_seed(0)
    system = tiny_fpn()
    for outputs, size_hw in zip(system.predict(images(), postprocess=EVERYTHING), ((100, 90), (40, 70)), strict=True):
        instances, semantic = outputs.at(size_hw)
        assert instances.categories.names == ("bright", "dark")
        assert semantic.categories.names[:2] == ("ground", "sky")
        merged = merge_panoptic(instances, semantic, categories=CATEGORIES)
        assert equal([merged], [outputs.resized(size_hw)])
        assert merged.size_hw == size_hw
    weighted = PanopticFPN(
        categories=CATEGORIES,
        detector=system.detector,
        semantic_head=system.semantic_head,
        instance_weight=3.0,
        semantic_weight=0.0,
    )
    weighted.load_state_dict(system.state_dict())
    plain, weighted_losses = losses(system, images()), losses(weighted, images())
    assert float(weighted_losses["semantic"].detach()) == 0
    torch.testing.assert_close(weighted_losses["mask"], 3 * plain["mask"])


def test_panoptic_fpn_is_explained_as_it_predicts():
    torch.manual_seed(0)
    predictor = Predictor(tiny_fpn(), preprocess=PLAIN, name="tiny", device="cpu")
    image = (images()[0]["image"].permute(1, 2, 0).numpy() * 63 + 127).round().astype(np.uint8)
    image = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    explanation = explain_panoptic(predictor, image, name="owl.png", score_threshold=0.3)
    (prediction,) = predictor.predict(image, score_threshold=0.3)
    assert equal([explanation.merge.panoptic], [prediction.panoptic])
    assert explanation.document()["void_pixels"] == (prediction.panoptic.ids == 0).sum()
    assert "owl.png" in explanation.page().html()
    with pytest.raises(UsageError, match="does not merge instances and a semantic map"):
        explain_panoptic(Predictor(tiny_detr(), preprocess=PLAIN, name="tiny", device="cpu"), image, name="owl.png")


def test_panoptic_fpn_takes_a_detector_of_its_things():
    with pytest.raises(UsageError, match="a category that is a thing, got only stuff: sky"):
        build_model("panoptic_fpn_efficientnet_lite0", Categories(("sky",), is_thing=(False,)))
    system = tiny_fpn()
    with pytest.raises(UsageError, match="a detector with a mask head whose categories are its things"):
        PanopticFPN(
            categories=Categories(("bright", "dark", "owl")),
            detector=system.detector,
            semantic_head=system.semantic_head,
        )


def test_a_frozen_detr_learns_its_masks_alone():
    torch.manual_seed(0)
    system = tiny_detr(freeze_detector=True)
    values = losses(system, images())
    assert set(values) == {"mask", "dice"}
    sum(values.values()).backward()
    trained = {name.split(".")[0] for name, parameter in system.named_parameters() if parameter.requires_grad}
    assert trained == {"bbox_attention", "mask_head"}


def mask_logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None]


def test_each_pixel_goes_to_the_query_that_claims_it_most():
    logits = mask_logits([9] * 5 + [0] * 15, [1] * 10 + [0] * 10, [0] * 10 + [1] * 10, [0] * 9 + [2] + [0] * 10)
    labels = np.array([1, 0, 0, 3])
    winner, owner = merge_queries(logits, labels, CATEGORIES, (1, 20), (1, 20))
    # The two queries of ground are one segment; the last wins one pixel, is left out, and ground has it.
    assert winner[0].tolist() == [0] * 5 + [1] * 15
    assert owner.tolist() == [0, 1, 1, -1]


def test_segments_of_four_pixels_are_left_out_and_those_of_five_stay():
    for pixels, kept in ((4, False), (5, True)):
        logits = mask_logits([1] * 20, [2] * pixels + [0] * (20 - pixels))
        winner, owner = merge_queries(logits, np.array([1, 3]), CATEGORIES, (1, 20), (1, 20))
        assert (winner[0, 0] == 1) == kept
        assert owner.tolist() == [0, 1 if kept else -1]
    winner, owner = merge_queries(torch.zeros(0, 2, 2), np.zeros(0, int), CATEGORIES, (4, 4), (3, 4))
    assert (winner == -1).all()
    assert winner.shape == (3, 4)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess(shorter_side=64, longer_side=96)
    monkeypatch.setitem(MODELS, "tiny_panoptic", ModelEntry(tiny_fpn, PANOPTIC, "", preprocess, learning_rate=1e-2))


@pytest.mark.usefixtures("tiny")
def test_a_few_images_of_coco_through_every_verb(shared_data, tmp_path):
    dataset = otus.open_dataset(shared_data / "coco_panoptic", split="val")
    coco_panoptic.write(dataset.select(range(8)), tmp_path / "few")
    options = ["--epochs", 2, "--batch-size", 3, "--val", 0.25, "--seed", 1, "--device", "cpu"]
    done = run("train", "--model", "tiny_panoptic", "--data", tmp_path / "few", *options, "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    (folder,) = (tmp_path / "panoptic").iterdir()
    assert {"batch.jpg", "validation.jpg", "curves.png"} <= {file.name for file in folder.iterdir()}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["score"] == rows[-1]["panoptic/PQ"]
    weights = folder / "weights" / "best.safetensors"

    photo = next((tmp_path / "few" / "images").rglob("*.jpg"))
    options = ["--model", weights, "--score-threshold", 0.1, "--json", "--out", tmp_path / "out", "--device", "cpu"]
    (image,) = json.loads(run("predict", photo, *options, "--precision", "exact").stdout)["images"]
    (prediction,) = otus.load(weights, device="cpu").predict(photo, score_threshold=0.1)
    assert prediction.panoptic.size_hw == prediction.image.shape[:2] == (image["height"], image["width"])
    segments = [(prediction.categories[segment.label], segment.score) for segment in prediction.panoptic.segments]
    segments_info = image["panoptic"]["segments_info"]
    assert [(segment["category"], segment.get("score")) for segment in segments_info] == segments
    assert len(prediction.instances) == 0
    assert "\n" not in repr(prediction)

    judged = json.loads(run("evaluate", "--data", tmp_path / "few", "--model", weights, "--val", 0.25, "--json").stdout)
    assert judged["protocol"] == "panoptic"
    assert judged["panoptic"]["PQ"] == pytest.approx(max(row["score"] for row in rows), abs=1e-9)
    assert set(judged["panoptic"]["per_category"]["person"]) == {"PQ", "SQ", "RQ"}

    table = ["--models", f"a={weights}", "--limit", 2, "--out", tmp_path / "table", "--json"]
    document = json.loads(run("compare", "--data", tmp_path / "few", *table).stdout)
    assert document["protocol"] == "panoptic"
    assert {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"} <= set(document["rows"][0])
    assert (tmp_path / "table" / "index.html").is_file()


@pytest.mark.usefixtures("tiny")
def test_data_without_panoptic_maps_are_refused(shared_data, tmp_path):
    done = run(
        "train", "--model", "tiny_panoptic", "--data", shared_data / "penn_fudan", "--epochs", 1, "--out", tmp_path
    )
    assert done.exit_code == 1
    assert "has no panoptic maps to train on" in done.stderr


def test_panoptic_fpn_starts_from_a_mask_rcnn():
    weights = read_weights("packaged", model="mask_rcnn_efficientnet_lite0_fpn")
    categories = Categories(("grass", "dog", "sky", "robot", "person"), is_thing=(False, True, False, True, True))

    def build(categories: Categories) -> nn.Module:
        return build_model("panoptic_fpn_efficientnet_lite0", categories)

    torch.manual_seed(0)
    system = build(categories)
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    misfits = load_pretrained(system, weights, build=build)
    after, pretrained = system.state_dict(), {name: tensor.float() for name, tensor in weights.state.items()}
    for name in ("region_features.pyramid.layer_blocks.0.0.weight", "box_head.network.fc6.weight"):
        torch.testing.assert_close(after[f"detector.{name}"], pretrained[name])
    rows = after["detector.box_head.cls_score.bias"]
    for name, row in (("dog", 1), ("person", 3)):  # after background, the things in their order
        assert rows[row] == pretrained["box_head.cls_score.bias"][1 + weights.categories.index(name)]
    assert rows[2] == before["detector.box_head.cls_score.bias"][2]
    new = {misfit.tensor for misfit in misfits if misfit.kind == "missing"}
    assert all(name.startswith(("semantic_head", "semantic_logits")) for name in new)
    torch.testing.assert_close(after["semantic_logits.weight"], before["semantic_logits.weight"])
