"""Speed of detectors, Otus and torchvision: the same random weights, the same image, in one run.

``python benchmarks/detection.py [--names a,b] [--repeats N] [--postprocess] [--runtimes onnxruntime,openvino] [--cpu]``.
Images are 480x640. ``--runtimes`` adds these runtimes; packaged detectors have no reference and are timed with and without
them. ``--cpu`` reports CPU seconds of all cores, which depend less on other programs. ``--postprocess`` measures only the
share of postprocessing 10,000 boxes in the time of dense detectors. Random weights are scaled so that the reference detects
many objects, because the cost of postprocessing grows with their number.
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
    """Return torchvision's model with random weights, scaled so that it detects objects."""
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
    """Scale the weights of a dense model so that about one in a hundred pairs of anchor and class exceeds the threshold."""
    maps = list(model.backbone(model.transform([image])[0].tensors).values())
    for head, deviation in ((model.head.classification_head, 1.5), (model.head.regression_head, 0.5)):
        if hasattr(head, "module_list"):
            last = [layer if isinstance(layer, nn.Conv2d) else layer[1] for layer in head.module_list]
        else:
            last = [getattr(head, n) for n in ("cls_logits", "bbox_reg", "bbox_ctrness") if hasattr(head, n)]
        outputs: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in last}

        def keep(layer: nn.Module, _: object, out: torch.Tensor, outputs: dict = outputs) -> None:
            outputs[layer].append(out.flatten())

        hooks = [layer.register_forward_hook(keep) for layer in last]
        head(maps)
        for hook in hooks:
            hook.remove()
        for layer, logits in outputs.items():
            layer.weight *= deviation / torch.cat(logits).std()
            layer.bias.zero_()
            if head is model.head.classification_head:  # trained weights never predict the unused class indices
                per_anchor = layer.bias.unflatten(0, (-1, 91))
                per_anchor[:, [index for index in range(1, 91) if index not in COCO_IDS]] = -1e4
    if not hasattr(model.head.classification_head, "module_list"):
        model.head.classification_head.cls_logits.bias -= 6.4
        if hasattr(model.head.regression_head, "bbox_ctrness"):  # boxes must not be empty, and the threshold is 0.2
            model.head.regression_head.bbox_reg.bias += 2.0
            model.head.classification_head.cls_logits.bias += 2.0
    return model


def share_of_postprocess(predictor: Predictor, image: np.ndarray, *, candidates: int = 10_000, repeats: int = 9) -> str:
    """Return the share of postprocessing ``candidates`` boxes of 80 classes in the time of a dense detector, as text.

    The score threshold is chosen so that this many boxes exceed it. The limit per feature map is lifted, the others apply.
    """
    system, prepared = predictor.system, _prepared(predictor, image)
    scores_module = system.scores
    if isinstance(scores_module, SigmoidScores):
        system.scores = SigmoidScores(top_k_per_level=candidates)
    with predictor.autocast():
        all_candidates = system.stages([prepared], postprocess=predictor.postprocess(0.0))
        scores = all_candidates.candidates[0].scores.sort(descending=True).values
        postprocess = predictor.postprocess(float(scores[min(candidates, len(scores) - 1)]))
        records = [system.stages([prepared], postprocess=postprocess) for _ in range(repeats + 2)][2:]
    system.scores = scores_module
    times = {
        name: statistics.median(record.milliseconds[name] for record in records) for name in records[0].milliseconds
    }
    count, after, total = len(records[0].candidates[0]), times["postprocess"], sum(times.values())
    share = f"{count} boxes postprocessed in {after:.1f} of {total:.1f} ms, {100 * after / total:.0f} %"
    return f"{predictor.precision}: {share}"


def _prepared(predictor: Predictor, image: np.ndarray) -> dict[str, object]:
    return predictor.preprocess.sample(to_tensors(Sample(image, "benchmark")))


def agreement(reference: dict[str, torch.Tensor], ours: Instances) -> str:
    """Return the largest differences from the reference, with detections paired regardless of the order of equal scores."""
    boxes, scores = reference["boxes"].numpy(), reference["scores"].numpy()
    assert ours.scores is not None
    if len(boxes) != len(ours):
        return f"{len(boxes)} and {len(ours)} objects"
    box_differences = np.abs(boxes[:, None] - ours.boxes_xyxy).max(axis=2)
    score_differences = np.abs(scores[:, None] - ours.scores)
    pairs = linear_sum_assignment(box_differences + score_differences)
    largest = box_differences[pairs].max(initial=0), score_differences[pairs].max(initial=0)
    return f"{len(boxes)} objects, boxes differ by up to {largest[0]:.1e} px, scores by {largest[1]:.1e}"


def loaded(name: str, image: np.ndarray, runtimes: Sequence[str]) -> tuple[nn.Module, list[Predictor]]:
    """Return torchvision's model, and Otus' predictors with its weights: exact, float32, in other runtimes, and auto."""
    reference = reference_model(NAMES[name], as_tensor(image))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(reference.state_dict(), file)
        exact, float32, auto = (
            otus.load(name, weights=file, precision=precision) for precision in ("exact", "float32", "auto")
        )
        others = [otus.load(name, weights=file, precision="float32", runtime=runtime) for runtime in runtimes]
        return reference, [exact, float32, *others, auto]


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """Return an image as the input of torchvision's models."""
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
    for predictor in predictors:
        seconds[label(predictor)] = seconds_of(
            lambda predictor=predictor: predictor.predict(image, score_threshold=0.05)
        )
    print_table(name, seconds, ours="otus float32")
    for predictor in predictors:
        instances = predictor.predict(image, score_threshold=0.05)[0].instances
        print(f"{label(predictor)} and torchvision: {agreement(theirs, instances)}")
    print(
        "speed-up: " + ", ".join(f"{tool} {base / value:.2f}" for tool, value in seconds.items() if value is not base)
    )


def label(predictor: Predictor) -> str:
    """Return the name of a predictor in the table."""
    return f"otus {predictor.precision}" + (f" {predictor.runtime}" if predictor.runtime != "torch" else "")


def compare_packaged(
    name: str, runtimes: Sequence[str], image: np.ndarray, seconds_of: Callable[[Callable[[], object]], float]
) -> None:
    """Time a packaged detector in each runtime, and compare its detections."""
    predictors = [otus.load(name, precision="float32", runtime=runtime) for runtime in ("torch", *runtimes)]
    seconds = {
        label(predictor): seconds_of(lambda predictor=predictor: predictor.predict(image)) for predictor in predictors
    }
    print_table(name, seconds, ours="otus float32")
    expected = predictors[0].predict(image, score_threshold=0.05)[0].instances
    reference = {"boxes": torch.from_numpy(expected.boxes_xyxy), "scores": torch.from_numpy(expected.scores)}
    for predictor in predictors[1:]:
        instances = predictor.predict(image, score_threshold=0.05)[0].instances
        print(f"{label(predictor)} and otus float32: {agreement(reference, instances)}\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--postprocess", action="store_true")
    parser.add_argument("--runtimes", default="")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    packages = ("torch", "torchvision", "onnxruntime", "openvino")
    print_header("Detectors of Otus and torchvision, one image of 480x640", packages)
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
        for predictor in predictors[1:]:
            if isinstance(predictor.system, DenseDetector):
                print(f"{name}, {share_of_postprocess(predictor, image)}")
        print(flush=True)


if __name__ == "__main__":
    main()
