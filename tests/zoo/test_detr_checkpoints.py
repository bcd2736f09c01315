"""DETR against that of transformers: with the same weights, equal predictions and losses."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import otus
from otus.data.tensors import TensorSample, bounding_boxes
from otus.detection.set_prediction import detr
from otus.detection.set_prediction.set_detector import SetDetector
from otus.errors import CheckpointError, ShapeError
from otus.instance.panoptic_detr import PanopticDETR
from otus.parts.backbones import freeze_norms, torchvision_backbone
from otus.parts.batching import make_batch
from otus.parts.preprocess import Preprocess
from otus.parts.transformer.set_matching import HungarianMatcher, normalize_boxes
from otus.structures import Segment
from otus.zoo.checkpoint import load_into
from otus.zoo.coco import COCO, COCO_IDS, COCO_PANOPTIC
from otus.zoo.detr_checkpoints import read_detr

transformers = pytest.importorskip("transformers", reason="DETR is compared with transformers'")
pytest.importorskip("timm", reason="transformers' DETR has its backbone from timm")

NO_CATEGORY = sorted(set(range(91)) - set(COCO_IDS))
TINY = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 40,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 3}  # fmt: skip


def photos(*sizes_hw: tuple[int, int]) -> list[Tensor]:
    """Return images of coloured rectangles on noise, normalised."""
    generator = torch.Generator().manual_seed(3)
    images = []
    for height, width in sizes_hw:
        image = torch.rand(3, height, width, generator=generator) * 0.2
        for _ in range(12):
            y, x = (int(torch.randint(side - 8, (), generator=generator)) for side in (height, width))
            image[:, y : y + 40, x : x + 30] = torch.rand(3, 1, 1, generator=generator)
        images.append((image - 0.45) / 0.22)
    return images


def padded(images: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return a batch as transformers' image processor makes it."""
    batch = make_batch([{"image": image} for image in images], size_divisor=1)
    mask = torch.zeros(len(images), *batch.padded_hw)
    for one, (height, width) in zip(mask, batch.sizes_hw, strict=True):
        one[:height, :width] = 1
    return {"pixel_values": batch.images, "pixel_mask": mask}


def reference(images: Sequence[Tensor], **config: Any) -> nn.Module:
    """Return transformers' DETR with random weights, scaled so that it detects 20 objects of 5 categories or more."""
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(num_labels=91, **config)).eval()
    for name, norm in model.model.backbone.named_modules():
        if hasattr(norm, "running_var"):
            last = name.endswith(("bn3", "layer.2.normalization"))
            nn.init.uniform_(norm.weight, 0.1, 0.3) if last else nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.normal_(model.model.query_position_embeddings.weight, std=3)
    for name, parameter in model.model.named_parameters():
        if parameter.ndim == 2 and (
            "attn" in name or "mlp" in name
        ):  # DETR's own beginning; theirs forgets the queries
            nn.init.xavier_uniform_(parameter)
    with torch.inference_mode():
        features = model.model(**padded(images)).last_hidden_state.flatten(0, 1)
        centre = features.mean(dim=0)
        # Features of random weights differ along few directions, so the classes are read from these, each as much.
        _, strength, directions = torch.linalg.svd(features - centre, full_matrices=False)
        known = int((strength[:8] > 0.01 * strength[0]).sum())
        apart = directions[:known] * len(features) ** 0.5 / strength[:known, None]
        for layer, size in ((model.class_labels_classifier, 3.0), (model.bbox_predictor.layers[0], 0.5)):
            layer.weight.copy_(size * torch.randn(layer.out_features, known) @ apart)
            layer.bias.copy_(-(layer.weight @ centre))
        nn.init.normal_(model.bbox_predictor.layers[2].weight, std=0.1)
        model.class_labels_classifier.bias[NO_CATEGORY] = -1e4  # trained weights never name these
        probabilities = model(**padded(images)).logits.softmax(-1)
    score, slot = probabilities[..., :-1].max(-1)
    found = slot[score > 0.5]
    assert len(found) >= 20
    assert len(found.unique()) >= 5
    return model


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors as in the official repository."""
    renames = (
        (r"^model\.backbone\.model\.", "backbone.0.body."),
        (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
        (r"^model\.input_projection", "input_proj"),
        (r"^model\.query_position_embeddings", "query_embed"),
        (r"^class_labels_classifier", "class_embed"),
        (r"^bbox_predictor", "bbox_embed"),
        (r"decoder\.layernorm", "decoder.norm"),
        (r"self_attn_layer_norm", "norm1"),
        (r"encoder_attn_layer_norm", "norm2"),
        (r"(encoder\.layers\.\d+)\.final_layer_norm", r"\1.norm2"),
        (r"(decoder\.layers\.\d+)\.final_layer_norm", r"\1.norm3"),
        (r"encoder_attn", "multihead_attn"),
        (r"mlp\.fc", "linear"),
        (r"o_proj", "out_proj"),
    )
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    for key in [key for key in renamed if ".q_proj." in key]:
        parts = [renamed.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


def of_the_hub(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors as in transformers before 5 and in the files of the hub."""
    older = {}
    for key, tensor in state.items():
        key = key.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        older[key.replace(".mlp.fc", ".fc").replace("o_proj", "out_proj")] = tensor
    return older


def tiny(state: dict[str, Tensor], *, dilated: bool = False) -> SetDetector:
    checkpoint = read_detr(state)
    name, stage = ("resnet50", 4) if dilated else ("resnet18", 5)
    backbone = torchvision_backbone(name, levels=(stage,), output_stride=16 if dilated else 32)
    freeze_norms(backbone)
    head = detr.DETRHead(
        backbone.channels[0],
        checkpoint.arguments["class_indices"],
        num_queries=checkpoint.arguments["num_queries"],
        embed_dim=32,
        num_heads=4,
        ffn_dim=64,
        num_encoder_layers=2,
        num_decoder_layers=3,
    )
    system = SetDetector(categories=COCO, backbone=backbone, head=head)
    load_into(system, checkpoint.state, source="reference")
    return system.eval()


def assert_same_predictions(system: SetDetector, model: nn.Module, images: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        expected = model(**padded(images))
    record = system.stages([{"image": image} for image in images])
    torch.testing.assert_close(record.outputs.logits[-1], expected.logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(record.outputs.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)
    # What is reported of each query: its likeliest category, its box in the image's own pixels.
    probabilities = expected.logits.softmax(-1)[..., :-1]
    for found, scores, boxes, image in zip(record.detections, probabilities, expected.pred_boxes, images, strict=True):
        score, slot = scores.max(-1)
        order = score.argsort(descending=True, stable=True)
        np.testing.assert_allclose(found.scores, score[order], atol=1e-4)
        sure = (scores.topk(2).values.diff().abs() > 1e-3)[order, 0] & (
            score[order].diff(prepend=torch.ones(1)) < -1e-3
        )
        sure[:-1] &= sure[1:].clone()
        assert sure.sum() > 5
        np.testing.assert_array_equal(np.array(COCO_IDS)[found.labels[sure]], slot[order][sure])
        x, y, w, h = (boxes[order] * torch.tensor([image.shape[2], image.shape[1]] * 2)).unbind(1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1).clamp(min=0)
        limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
        torch.testing.assert_close(found.boxes[sure], torch.minimum(corners, limit)[sure], atol=2e-2, rtol=0)


@pytest.mark.parametrize("naming", ["official", "hub", "transformers 5"])
def test_tiny_detrs_equal_transformers(naming):
    images = photos((90, 128), (110, 75))
    model = reference(images, backbone="resnet18", **TINY)
    state = {"official": official, "hub": of_the_hub, "transformers 5": dict}[naming](model.state_dict())
    system = tiny(state)
    assert_same_predictions(system, model, images)
    assert_same_predictions(system, model, images[:1])


def test_a_dilated_backbone_equals_transformers():
    images = photos((70, 100))
    model = reference(images, backbone="resnet50", dilation=True, **TINY)
    assert_same_predictions(tiny(official(model.state_dict()), dilated=True), model, images)


def test_a_backbone_by_transformers_own_resnet_is_read():
    images = photos((70, 100))
    backbone = transformers.ResNetConfig(out_features=["stage4"])
    small = {**TINY, "d_model": 256, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    model = reference(images, use_timm_backbone=False, backbone_config=backbone, **small)
    state = read_detr(model.state_dict()).state
    ours = detr.detr_resnet50(COCO, class_indices=COCO_IDS).backbone
    load_into(
        ours, {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}, source="backbone"
    )
    with torch.inference_mode():
        expected = model.model.backbone(**padded(images))[-1][0]
        torch.testing.assert_close(ours.eval()(torch.stack(images))[0], expected, atol=1e-4, rtol=1e-4)


def test_attention_is_transformers_and_adds_up_to_one():
    images = photos((90, 128), (110, 75))
    model = reference(images, backbone="resnet18", attn_implementation="eager", **TINY)
    with torch.inference_mode():
        expected = model(**padded(images), output_attentions=True).cross_attentions[-1].mean(1)
    found = tiny(model.state_dict()).stages([{"image": image} for image in images]).outputs.attention()
    torch.testing.assert_close(found.flatten(2), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(2, 40))


def samples(images: Sequence[Tensor], counts: Sequence[int]) -> list[TensorSample]:
    generator = torch.Generator().manual_seed(5)
    found: list[TensorSample] = []
    for image, count in zip(images, counts, strict=True):
        corner = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + 8 + torch.rand(count, 2, generator=generator) * 25], dim=1)
        labels = torch.randint(0, 80, (count,), generator=generator)
        found.append({"image": image, "boxes": bounding_boxes(boxes, image.shape[1:]), "labels": labels})
    return found


@pytest.mark.parametrize("counts", [(4, 2), (3, 0), (0, 0), (60, 5)], ids=["few", "some", "none", "too many"])
def test_losses_equal_transformers(counts):
    images = photos((90, 128), (110, 75))
    model = reference(images, backbone="resnet18", **TINY)
    system, learned = tiny(model.state_dict()), samples(images, counts)
    found = system.losses(learned)
    outputs = system.stages(learned).outputs
    labels = []
    for sample in learned:
        height, width = sample["image"].shape[1:]
        x1, y1, x2, y2 = (sample["boxes"].as_subclass(Tensor) / torch.tensor([width, height] * 2)).unbind(1)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)
        labels.append({"class_labels": torch.tensor(COCO_IDS)[sample["labels"]], "boxes": boxes})
    config = model.config
    config.auxiliary_loss = True
    total, parts, _ = model.loss_function(
        outputs.logits[-1], labels, "cpu", outputs.boxes[-1], config, outputs.logits, outputs.boxes
    )
    torch.testing.assert_close(found["class"], parts["loss_ce"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["box"], 5 * parts["loss_bbox"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["giou"], 2 * parts["loss_giou"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sum(found.values()), total, atol=1e-4, rtol=1e-5)


def test_the_matching_is_transformers():
    from transformers.loss.loss_for_object_detection import HungarianMatcher as Theirs

    generator = torch.Generator().manual_seed(2)
    logits, boxes = torch.randn(1, 30, 7, generator=generator), torch.rand(1, 30, 4, generator=generator) / 2
    target_boxes, labels = torch.rand(9, 4, generator=generator) / 2, torch.randint(0, 6, (9,), generator=generator)
    queries, objects = Theirs(1, 5, 2)(
        {"logits": logits, "pred_boxes": boxes}, [{"class_labels": labels, "boxes": target_boxes}]
    )[0]
    match = HungarianMatcher()(-logits.softmax(-1)[0][:, labels], boxes[0], target_boxes)
    assert match.queries.tolist() == queries.tolist()
    assert match.objects.tolist() == objects.tolist()


def test_official_files_load_by_name(tmp_path):
    torch.manual_seed(0)
    config = transformers.DetrConfig(num_labels=91)
    model = transformers.DetrForObjectDetection(config).eval()
    torch.save({"model": official(model.state_dict())}, tmp_path / "detr-r50.pth")
    predictor = otus.load("detr_resnet50", weights=tmp_path / "detr-r50.pth")
    assert predictor.categories is COCO
    image = photos((64, 90))[0]
    with torch.inference_mode():
        expected = model(pixel_values=image[None])
    record = predictor.system.stages([{"image": image}])
    torch.testing.assert_close(record.outputs.logits[-1], expected.logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(record.outputs.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)
    assert predictor.preprocess == Preprocess(shorter_side=800, longer_side=1333, antialias=True)


WITH_MASKS = {**TINY, "d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8}


def panoptic_reference(images: Sequence[Tensor], **config: Any) -> nn.Module:
    """Return transformers' DETR with masks: detector as in :func:`reference`, and masks that differ by query."""
    detector = reference(images, **config)
    model = transformers.DetrForSegmentation(detector.config).eval()
    model.detr.load_state_dict(detector.state_dict())
    for name, parameter in model.mask_head.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        elif "norm.weight" not in name:
            nn.init.normal_(parameter, std=0.1)
    with torch.inference_mode():
        outputs = detector.model(**padded(images))
        for layer, features in (
            (model.bbox_attention.q_proj, outputs.last_hidden_state),
            (model.bbox_attention.k_proj, outputs.encoder_last_hidden_state),
        ):
            # Of random weights all queries and all locations are nearly alike, so they are told apart by what differs.
            features = features.flatten(0, 1)
            centre = features.mean(dim=0)
            _, strength, directions = torch.linalg.svd(features - centre, full_matrices=False)
            apart = directions[:4] * len(features) ** 0.5 / strength[:4, None]
            layer.weight.copy_(torch.randn(len(layer.weight), 4) @ apart)
            layer.bias.copy_(-(layer.weight @ centre))
        maps = detector.model.backbone(*padded(images).values())
        for stage, (feature_map, _) in zip(model.mask_head.fpn_stages, maps[2::-1], strict=True):
            stage.fpn_adapter.weight /= feature_map.std()  # the backbone's random maps would drown the queries
        model.mask_head.conv1.conv.weight[:, -model.config.encoder_attention_heads :] *= 10  # of the attention
        nn.init.normal_(model.mask_head.output_conv.weight, std=2.0)
    return model


def official_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of DETR with masks as in the official repository."""
    detector = official({key.removeprefix("detr."): one for key, one in state.items() if key.startswith("detr.")})
    renamed = {f"detr.{key}": tensor for key, tensor in detector.items()}
    for key, tensor in state.items():
        if key.startswith("detr."):
            continue
        for i in (1, 2):
            key = key.replace(f"conv{i}.conv.", f"lay{i}.").replace(f"conv{i}.norm.", f"gn{i}.")
        for i in range(3):
            stage = f"fpn_stages.{i}."
            key = key.replace(f"{stage}fpn_adapter.", f"adapter{i + 1}.")
            key = key.replace(f"{stage}refine.conv.", f"lay{i + 3}.").replace(f"{stage}refine.norm.", f"gn{i + 3}.")
        renamed[key.replace("output_conv", "out_lay").replace("_proj.", "_linear.")] = tensor
    return renamed


def tiny_panoptic(state: dict[str, Tensor]) -> PanopticDETR:
    checkpoint = read_detr(state)
    backbone = torchvision_backbone("resnet18", levels=(2, 3, 4, 5))
    freeze_norms(backbone)
    sizes = {"embed_dim": 64, "num_heads": 8, "ffn_dim": 64, "num_encoder_layers": 2, "num_decoder_layers": 3}
    head = detr.DETRHead(512, checkpoint.arguments["class_indices"], num_queries=40, **sizes)
    system = PanopticDETR(SetDetector(categories=COCO, backbone=backbone, head=head))
    load_into(system, checkpoint.state, source="reference")
    return system.eval()


def assert_same_masks(system: PanopticDETR, model: nn.Module, images: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        expected = model(**padded(images))
    everything = replace(system.postprocess, score_threshold=0.0)
    record = system.stages([{"image": image} for image in images], postprocess=everything)
    torch.testing.assert_close(record.outputs.logits[-1], expected.logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(record.outputs.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)
    for found, logits, masks in zip(record.detections, record.mask_logits, expected.pred_masks, strict=True):
        assert len(found) == len(masks)
        assert masks.std() > 0.1
        assert masks.std(dim=0).mean() > 0.01  # queries differ, by a hundred times what they may differ from theirs
        torch.testing.assert_close(logits, masks[found.origins], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("naming", ["official", "transformers 5"])
def test_masks_are_transformers(naming):
    images = photos((90, 128), (110, 75))
    model = panoptic_reference(images, backbone="resnet18", **WITH_MASKS)
    system = tiny_panoptic({"official": official_masks, "transformers 5": dict}[naming](model.state_dict()))
    assert_same_masks(system, model, images)
    assert_same_masks(system, model, images[:1])


def test_losses_of_masks_are_transformers():
    images = photos((90, 128), (110, 75))
    system = tiny_panoptic(panoptic_reference(images, backbone="resnet18", **WITH_MASKS).state_dict())
    learned = samples(images, (4, 2))
    for sample in learned:
        ids = torch.zeros(sample["image"].shape[1:], dtype=torch.int64)
        for i, (x1, y1, x2, y2) in enumerate(sample["boxes"].round().long().tolist(), start=1):
            ids[y1:y2, x1:x2] = i
        present = set(ids.unique().tolist())
        sample["panoptic"] = ids
        segments = [Segment(i, label) for i, label in enumerate(sample["labels"].tolist(), start=1)]
        sample["segments"] = [segment for segment in segments if segment.id in present]
    found = system.losses(learned)
    targets = [system.target(sample) for sample in learned]
    record = system.stages(learned, postprocess=replace(system.postprocess, score_threshold=0.0))
    masks = torch.stack(
        [one[one_found.origins.argsort()] for one, one_found in zip(record.mask_logits, record.detections, strict=True)]
    )
    labels = []
    for target, (height, width) in zip(targets, record.batch.sizes_hw, strict=True):
        boxes = normalize_boxes(target.boxes, (height, width))
        ids = torch.tensor(COCO_IDS)[target.labels]
        labels.append({"class_labels": ids, "boxes": boxes, "masks": target.masks})
    from transformers.loss.loss_for_object_detection import ForSegmentationLoss

    config = transformers.DetrConfig(num_labels=91, **WITH_MASKS)
    outputs = record.outputs
    _, parts, _ = ForSegmentationLoss(outputs.logits[-1], labels, "cpu", outputs.boxes[-1], masks, config)
    torch.testing.assert_close(found["mask"], parts["loss_mask"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["dice"], parts["loss_dice"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["giou"], 2 * parts["loss_giou"], atol=1e-5, rtol=1e-4)


def test_the_state_of_another_model_is_an_error():
    with pytest.raises(CheckpointError, match=r"not a DETR.*got 1 others such as head"):
        read_detr({"head.weight": torch.zeros(1)})


def test_classes_of_no_category_are_kept():
    """The published panoptic models have logits for 250 classes, of which no category has an id above 200."""
    state = panoptic_reference(photos((64, 64)), backbone="resnet18", **WITH_MASKS).state_dict()
    boxes = read_detr(state).arguments
    assert "num_classes" not in boxes
    state["detr.class_labels_classifier.weight"] = torch.zeros(251, 64)
    arguments = read_detr(state).arguments
    assert (arguments["num_classes"], max(arguments["class_indices"])) == (250, 200)
    sizes = {"embed_dim": 64, "num_encoder_layers": 1, "num_decoder_layers": 1}
    head = detr.DETRHead(8, arguments["class_indices"], num_classes=250, **sizes)
    assert (head.no_object, head.class_embed.out_features) == (250, 251)
    with pytest.raises(ShapeError, match="num_classes: expected at least 201, got 200"):
        detr.DETRHead(8, arguments["class_indices"], num_classes=200, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("panoptic_detr_resnet50", {"backbone": "resnet50"}),
        ("panoptic_detr_resnet50_dc5", {"backbone": "resnet50", "dilation": True}),
        ("panoptic_detr_resnet101", {"backbone": "resnet101"}),
    ],
)
def test_paper_size_panoptic_detrs_give_transformers_masks(name, config, tmp_path):
    """Load official names, as in the published files: 250 classes, those of COCO's things and stuff among them."""
    images = photos((320, 400), (300, 240))
    model = panoptic_reference(images, **config)
    model.detr.class_labels_classifier = nn.Linear(256, 251)
    model.config.num_labels = model.detr.config.num_labels = 250
    torch.save({"model": official_masks(model.state_dict())}, tmp_path / "detr.pth")
    predictor = otus.load(name, weights=tmp_path / "detr.pth", device="cpu")
    assert predictor.categories is COCO_PANOPTIC
    assert predictor.postprocess().score_threshold == 0.85
    assert_same_masks(predictor.system, model.eval(), images)


PAPER_SIZES = {
    "detr_resnet50": {"backbone": "resnet50"},
    "detr_resnet50_dc5": {"backbone": "resnet50", "dilation": True},
    "detr_resnet101": {"backbone": "resnet101"},
    "detr_resnet101_dc5": {"backbone": "resnet101", "dilation": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_SIZES)
def test_full_size_detrs_equal_transformers(name):
    images = photos((480, 640), (500, 353))
    model = reference(images, **PAPER_SIZES[name])
    for naming in (official, of_the_hub, dict):
        checkpoint = read_detr(naming(model.state_dict()))
        system = getattr(detr, name)(COCO, **checkpoint.arguments)
        load_into(system, checkpoint.state, source=name)
        assert_same_predictions(system.eval(), model, images)
