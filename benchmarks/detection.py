"""Detectors beside torchvision's: the same random weights, the same image, one run.

``python benchmarks/detection.py [--names a,b] [--repeats N] [--postprocess] [--runtimes onnxruntime,openvino] [--cpu]``.
Images are 480x640. ``--runtimes`` adds those; packaged detectors, if named, have no reference and are timed with and without
them. ``--cpu`` counts the seconds of all cores, which other programs on the machine disturb less. ``--postprocess`` measures
only what postprocessing 10,000 boxes takes of the whole of dense detectors. Random weights are scaled so that the reference
finds many objects, since work after the network grows with them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from _side_by_side import median_seconds, print_header, print_table
from scipy.optimize import linear_sum_assignment
from torch import nn

import otus
from otus.data.sample import Sample
from otus.data.scenes.generator import Scenes
from otus.data.tensors import to_tensors
from otus.detection.single_stage.dense_detector import DenseDetector
from otus.inference.predictor import Predictor
from otus.parts.heads.dense_scores import SigmoidScores
from otus.structures import Instances
from otus.zoo.coco import COCO_IDS

NAMES = {
    "faster_rcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "mask_rcnn_resnet50_fpn": "maskrcnn_resnet50_fpn",
    "keypoint_rcnn_resnet50_fpn": "keypointrcnn_resnet50_fpn",
    "faster_rcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2": "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn": "fcos_resnet50_fpn",
    "ssd300_vgg16": "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large": "ssdlite320_mobilenet_v3_large",
}


def reference_model(name: str, image: torch.Tensor) -> nn.Module:
    """torchvision's model with random weights that find something."""
    torch.manual_seed(0)
    model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if not hasattr(model, "rpn"):
        return scaled_dense(model, image)
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.05)
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=1e-3)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.02)
    return model


@torch.inference_mode()
def scaled_dense(model: nn.Module, image: torch.Tensor) -> nn.Module:
    """A dense model whose answers are spread so that about one of a hundred pairs of anchor and class is worth a look."""
    maps = list(model.backbone(model.transform([image])[0].tensors).values())
    for head, spread in ((model.head.classification_head, 1.5), (model.head.regression_head, 0.5)):
        if hasattr(head, "module_list"):
            last = [one if isinstance(one, nn.Conv2d) else one[1] for one in head.module_list]
        else:
            last = [getattr(head, n) for n in ("cls_logits", "bbox_reg", "bbox_ctrness") if hasattr(head, n)]
        outputs: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in last}

        def keep(layer: nn.Module, _: object, out: torch.Tensor, outputs: dict = outputs) -> None:
            outputs[layer].append(out.flatten())

        hooks = [layer.register_forward_hook(keep) for layer in last]
        head(maps)
        for hook in hooks:
            hook.remove()
        for layer, found in outputs.items():
            layer.weight *= spread / torch.cat(found).std()
            layer.bias.zero_()
            if head is model.head.classification_head:  # trained weights never name what is no category
                of_anchors = layer.bias.unflatten(0, (-1, 91))
                of_anchors[:, [slot for slot in range(1, 91) if slot not in COCO_IDS]] = -1e4
    if not hasattr(model.head.classification_head, "module_list"):
        model.head.classification_head.cls_logits.bias -= 6.4
        if hasattr(model.head.regression_head, "bbox_ctrness"):  # boxes need a size, and the threshold is 0.2
            model.head.regression_head.bbox_reg.bias += 2.0
            model.head.classification_head.cls_logits.bias += 2.0
    return model


def share_of_postprocess(predictor: Predictor, image: np.ndarray, *, candidates: int = 10_000, repeats: int = 9) -> str:
    """What choosing, decoding and suppressing that many boxes in 80 classes takes of the whole of a dense detector.

    The threshold is the one that so many pass. Limits of a category are the model's own, those of a map are lifted.
    """
    system, prepared = predictor.system, _prepared(predictor, image)
    own = system.scores
    if isinstance(own, SigmoidScores):
        system.scores = SigmoidScores(top_k_per_level=candidates)
    with predictor.autocast():
        everything = system.stages([prepared], postprocess=predictor.postprocess(0.0))
        scores = everything.candidates[0].scores.sort(descending=True).values
        postprocess = predictor.postprocess(float(scores[min(candidates, len(scores) - 1)]))
        records = [system.stages([prepared], postprocess=postprocess) for _ in range(repeats + 2)][2:]
    system.scores = own
    times = {
        name: statistics.median(record.milliseconds[name] for record in records) for name in records[0].milliseconds
    }
    count, after, whole = len(records[0].candidates[0]), times["postprocess"], sum(times.values())
    share = f"{count} boxes postprocessed in {after:.1f} of {whole:.1f} ms, {100 * after / whole:.0f} % of the whole"
    return f"{predictor.precision}: {share}"


def _prepared(predictor: Predictor, image: np.ndarray) -> dict[str, object]:
    return predictor.preprocess.sample(to_tensors(Sample(image, "benchmark")))


def agreement(reference: dict[str, torch.Tensor], ours: Instances) -> str:
    """How far ours is from the reference on what both found, whatever the order of equal scores."""
    boxes, scores = reference["boxes"].numpy(), reference["scores"].numpy()
    assert ours.scores is not None
    if len(boxes) != len(ours):
        return f"{len(boxes)} and {len(ours)} objects"
    boxes_apart = np.abs(boxes[:, None] - ours.boxes_xyxy).max(axis=2)
    scores_apart = np.abs(scores[:, None] - ours.scores)
    pairs = linear_sum_assignment(boxes_apart + scores_apart)
    far = boxes_apart[pairs].max(initial=0), scores_apart[pairs].max(initial=0)
    return f"{len(boxes)} objects, boxes {far[0]:.1e} px, scores {far[1]:.1e} apart"


def loaded(name: str, image: np.ndarray, runtimes: Sequence[str]) -> tuple[nn.Module, list[Predictor]]:
    """torchvision's model, and ours with its weights: exact, float32, in other runtimes, and as it comes."""
    reference = reference_model(NAMES[name], as_tensor(image))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(reference.state_dict(), file)
        exact, float32, default = (otus.load(name, weights=file, precision=way) for way in ("exact", "float32", "auto"))
        others = [otus.load(name, weights=file, precision="float32", runtime=runtime) for runtime in runtimes]
        return reference, [exact, float32, *others, default]


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """What torchvision's models take."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def compare(
    name: str,
    reference: nn.Module,
    predictors: list[Predictor],
    image: np.ndarray,
    seconds_of: Callable[[Callable[[], object]], float],
) -> None:
    """Time and compare one model."""
    with torch.inference_mode():
        theirs = reference([as_tensor(image)])[0]
        base = seconds_of(lambda: reference([as_tensor(image)]))
    seconds = {"torchvision float32": base}
    for way in predictors:
        seconds[label(way)] = seconds_of(lambda way=way: way.predict(image, score_threshold=0.05))
    print_table(name, seconds, ours="otus float32")
    for way in predictors:
        found = way.predict(image, score_threshold=0.05)[0].instances
        print(f"{label(way)} beside torchvision: {agreement(theirs, found)}")
    print("speed-up: " + ", ".join(f"{way} {base / value:.2f}" for way, value in seconds.items() if value is not base))


def label(way: Predictor) -> str:
    """What a predictor is called in the table."""
    return f"otus {way.precision}" + (f" {way.runtime}" if way.runtime != "torch" else "")


def compare_packaged(
    name: str, runtimes: Sequence[str], image: np.ndarray, seconds_of: Callable[[Callable[[], object]], float]
) -> None:
    """Time a packaged detector in each runtime, and compare what it finds."""
    ways = [otus.load(name, precision="float32", runtime=runtime) for runtime in ("torch", *runtimes)]
    seconds = {label(way): seconds_of(lambda way=way: way.predict(image)) for way in ways}
    print_table(name, seconds, ours="otus float32")
    own = ways[0].predict(image, score_threshold=0.05)[0].instances
    theirs = {"boxes": torch.from_numpy(own.boxes_xyxy), "scores": torch.from_numpy(own.scores)}
    for way in ways[1:]:
        found = way.predict(image, score_threshold=0.05)[0].instances
        print(f"{label(way)} beside otus float32: {agreement(theirs, found)}\n")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--postprocess", action="store_true")
    parser.add_argument("--runtimes", default="")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    packages = ("torch", "torchvision", "onnxruntime", "openvino")
    print_header("Detectors beside torchvision, one image of 480x640", packages)
    clock = time.process_time if arguments.cpu else time.perf_counter
    seconds_of = partial(median_seconds, repeats=arguments.repeats, clock=clock)
    runtimes = [runtime for runtime in arguments.runtimes.split(",") if runtime]
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for name in arguments.names.split(","):
        if name not in NAMES:
            photo = Scenes(1, size_hw=(480, 640)).scene(0).image
            compare_packaged(name, runtimes, photo, seconds_of)
            continue
        reference, predictors = loaded(name, image, runtimes)
        if not arguments.postprocess:
            compare(name, reference, predictors, image, seconds_of)
        for way in predictors[1:]:
            if isinstance(way.system, DenseDetector):
                print(f"{name}, {share_of_postprocess(way, image)}")
        print(flush=True)


if __name__ == "__main__":
    main()
