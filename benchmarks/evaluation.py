"""Time and memory of average precision, Otus and other tools, on 5,000 images with 36,000 objects and 374,000 detections.

    python benchmarks/evaluation.py [--images 5000] [--kind bbox|segm] [--repeats 5] [--skip pycocotools]

`evaluation, loaded before` starts from what each tool has loaded (its own objects; arrays for Otus), `evaluation from files`
from two JSON files; memory is the peak of a process that does the latter. `otus COCOeval` is the drop-in replacement of
pycocotools. Finally the whole command, also in a fresh install, where kernels are compiled, and the time by the number of
detections.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _side_by_side import median_seconds, print_header, print_table

CATEGORIES = 80
SIDE = 640


def synthetic_data(num_images: int, *, masks: bool, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return labels and results in COCO's format, with 7.2 objects and 75 detections per image (45 with masks).

    Half of the detections are near an object, the others are random. As with a detector, those of an image are sorted by
    score and have few categories.
    """
    rng = np.random.default_rng(seed)
    images = [{"id": i + 1, "file_name": f"{i:06d}.jpg", "width": SIDE, "height": SIDE} for i in range(num_images)]
    annotations, results = [], []
    for image in images:
        shown = rng.choice(CATEGORIES, size=int(rng.integers(1, 5)), replace=False) + 1
        objects = []
        for _ in range(rng.poisson(7.2)):
            width, height = np.exp(rng.uniform(np.log(8), np.log(300), 2))
            box = np.round([rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height), width, height], 2).tolist()
            record = {
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": int(rng.choice(shown)),
                "bbox": box, "area": round(box[2] * box[3] * 0.7, 2), "iscrowd": int(rng.random() < 0.01),
            }  # fmt: skip
            if masks:
                record["segmentation"] = [_outline(rng, box)]
            objects.append(record)
            annotations.append(record)
        count = rng.poisson(45 if masks else 74.8)
        scores = np.sort(np.round(rng.beta(0.5, 3, count), 4))[::-1].tolist()
        for score in scores:
            if objects and rng.random() < 0.5:
                near = objects[int(rng.integers(len(objects)))]
                x, y, w, h = np.array(near["bbox"]) + rng.normal(size=4) * 0.1 * min(near["bbox"][2:])
                category = near["category_id"]
            else:
                w, h = np.exp(rng.uniform(np.log(8), np.log(300), 2))
                x, y = rng.uniform(0, SIDE - w), rng.uniform(0, SIDE - h)
                category = int(rng.choice(shown)) if rng.random() < 0.7 else int(rng.integers(1, CATEGORIES + 1))
            box = [round(float(v), 2) for v in (max(x, 0), max(y, 0), max(w, 1), max(h, 1))]
            result = {"image_id": image["id"], "category_id": category, "bbox": box, "score": score}
            if masks:
                result["segmentation"] = _rle(_outline(rng, box))
            results.append(result)
    categories = [{"id": i + 1, "name": f"category {i + 1}"} for i in range(CATEGORIES)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, results


def _outline(rng: np.random.Generator, box: list[float]) -> list[float]:
    x, y, w, h = box
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = rng.uniform(0.7, 1, 24)
    points = np.stack([x + w / 2 * (1 + radius * np.cos(angles)), y + h / 2 * (1 + radius * np.sin(angles))], axis=1)
    return np.round(np.clip(points, 0, SIDE), 2).reshape(-1).tolist()


def _rle(outline: list[float]) -> dict[str, Any]:
    from pycocotools import mask

    record = mask.frPyObjects([outline], SIDE, SIDE)[0]
    return {"size": record["size"], "counts": record["counts"].decode()}


def _quietly(function: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return function()

    return run


def _pycocotools_like(name: str) -> tuple[Any, Any]:
    """Return COCO and COCOeval of a tool with pycocotools' interface; raise ImportError if it is not installed."""
    if name == "hotcoco":
        from hotcoco import COCO, COCOeval
    elif name == "faster-coco-eval":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    elif name == "vernier":
        from pycocotools.coco import COCO
        from vernier import COCOeval
    elif name == "otus COCOeval":
        from otus.metrics.pycocotools.coco import COCO
        from otus.metrics.pycocotools.cocoeval import COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    return COCO, COCOeval


def _steps(name: str, kind: Any, labels: Path, results: Path) -> tuple[Callable[[], Any], Callable[..., float]]:
    """Return a tool's functions to load the two files, and to compute AP from what it loaded."""
    if name == "otus":
        from otus.data.formats.coco_results import read_results
        from otus.data.open import open_dataset
        from otus.evaluation.evaluate import evaluate_predictions

        def load() -> tuple[Any, Any]:
            dataset = open_dataset(labels)
            return dataset, read_results(results, dataset)

        def evaluate(*loaded: Any) -> float:
            return evaluate_predictions(*loaded, kinds=[kind]).results[kind].figures["AP"]

        return load, evaluate
    coco, evaluator = _pycocotools_like(name)

    def load_theirs() -> tuple[Any, Any]:
        ground_truth = coco(str(labels))
        return ground_truth, ground_truth.loadRes(str(results))

    def evaluate_theirs(*loaded: Any) -> float:
        evaluation = evaluator(*loaded, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return float(evaluation.stats[0])

    return load_theirs, evaluate_theirs


def _measure(name: str, kind: str, labels: Path, results: Path, repeats: int) -> tuple[float, float, float] | None:
    """Return the seconds of evaluation, the seconds of loading and evaluation, and AP."""
    try:
        load, evaluate = _steps(name, kind, labels, results)
    except ImportError:
        return None
    loaded: list[Any] = []
    figures: list[Any] = []

    def load_again() -> None:
        loaded[:] = load()

    def evaluate_again() -> None:
        figures[:] = [evaluate(*loaded)]

    # The warm-up compiles kernels. pycocotools has none and takes half a minute, so it runs only once.
    slow = name == "pycocotools"
    counts = {"repeats": 1 if slow else repeats, "warm_up": 0 if slow else 1}
    loading = median_seconds(_quietly(load_again), **counts)
    evaluation = median_seconds(_quietly(evaluate_again), **counts)
    return evaluation, loading + evaluation, figures[0]


def _peak(name: str, kind: str, labels: Path, results: Path) -> float | None:
    """Return the peak memory in megabytes of a process of its own."""
    arguments = [sys.executable, __file__, "--peak-of", name, "--kind", kind, "--files", str(labels), str(results)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return float(run.stdout) if run.returncode == 0 else None


def _print_peak(name: str, kind: str, labels: Path, results: Path) -> None:
    load, evaluate = _steps(name, kind, labels, results)
    _quietly(lambda: evaluate(*load()))()
    print(_peak_megabytes())


def _peak_megabytes() -> float:
    try:  # the value of getrusage includes the process that this one was forked from
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)


def _by_detections(kind: Any, labels: Path, results: Path, repeats: int) -> dict[str, float | None]:
    """Return the seconds of Otus' evaluation with the images repeated 1, 2, 4 and 8 times."""
    from otus.metrics.detection.average_precision import AveragePrecision
    from otus.metrics.detection.coco import CocoProtocol
    from otus.structures import Objects, Segmentations

    load, _ = _steps("otus", kind, labels, results)
    dataset, predictions = load()

    def tiled(objects: Objects, times: int) -> Objects:
        rows = np.tile(np.arange(len(objects)), times)
        shift = np.repeat(np.arange(times) * len(dataset), len(objects))
        columns: dict[str, Any] = {
            name: None if (column := getattr(objects, name)) is None else column[rows]
            for name in ("labels", "boxes_xyxy", "ids", "areas", "is_crowd", "scores")
        }
        segmentations: Segmentations | None = objects.segmentations
        return Objects.build(
            image_index=objects.image_index[rows] + shift,
            segmentations=None if segmentations is None else segmentations.take(rows),
            **columns,
        )

    seconds: dict[str, float | None] = {}
    for times in (1, 2, 4, 8):
        inputs = tiled(dataset.objects, times), tiled(predictions, times)
        sizes_hw = np.tile(dataset.images.sizes_hw, (times, 1))
        ids = np.arange(len(sizes_hw))

        def evaluate(inputs: Any = inputs, ids: Any = ids, sizes_hw: Any = sizes_hw) -> object:
            metric = AveragePrecision(CocoProtocol(kind), dataset.categories)
            return metric.update(*inputs, image_ids=ids, sizes_hw=sizes_hw).compute()

        seconds[f"{len(inputs[1]):,} detections"] = median_seconds(evaluate, repeats=min(repeats, 3))
    return seconds


_HOTCOCO = """
import sys
from hotcoco import COCO, COCOeval
truth = COCO(sys.argv[1])
evaluation = COCOeval(truth, truth.loadRes(sys.argv[2]), "bbox")
evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
"""


def _process(command: Sequence[str | Path], **changes: str) -> Callable[[], object]:
    """Return a function that runs a command, with compiled Python modules as in an installation."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | changes
    return lambda: subprocess.run(command, check=True, capture_output=True, env=environment)


def _command_seconds(labels: Path, results: Path, repeats: int) -> dict[str, float | None]:
    """Return the seconds of the command, of a script with hotcoco, and of the first two runs without compiled kernels."""
    command = [sys.executable, "-m", "otus", "evaluate", "--data", labels, "--predictions", results, "--json"]
    seconds: dict[str, float | None] = {"otus": median_seconds(_process(command), repeats=repeats)}
    with contextlib.suppress(subprocess.CalledProcessError):
        script = _process([sys.executable, "-c", _HOTCOCO, labels, results])
        seconds["hotcoco, bbox, in a script"] = median_seconds(script, repeats=repeats)
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first run after install", "second run"):
            seconds[name] = median_seconds(_process(command, NUMBA_CACHE_DIR=cache), repeats=1, warm_up=0)
    return seconds


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int)
    parser.add_argument("--kind", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", default="", help="tools to skip, comma-separated")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        _print_peak(arguments.peak_of, arguments.kind, *arguments.files)
        return
    num_images = arguments.images or (1000 if arguments.kind == "segm" else 5000)
    peers = ("hotcoco", "vernier", "faster-coco-eval", "pycocotools")
    tools = [tool for tool in ("otus", "otus COCOeval", *peers) if tool not in arguments.skip.split(",")]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print_header(f"Average precision ({arguments.kind})", peers)
    document, records = synthetic_data(num_images, masks=arguments.kind == "segm")
    print(
        f"{num_images} images, {len(document['annotations'])} objects, {len(records)} detections, {CATEGORIES} categories\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        labels, results = Path(folder, "labels.json"), Path(folder, "results.json")
        labels.write_text(json.dumps(document))
        results.write_text(json.dumps(records))
        del document, records
        measured = {tool: _measure(tool, arguments.kind, labels, results, arguments.repeats) for tool in tools}
        for index, title in enumerate(("evaluation, loaded before", "evaluation from files")):
            print_table(title, {tool: values and values[index] for tool, values in measured.items()})
        peaks = {tool: _peak(tool, arguments.kind, labels, results) for tool in tools}
        print_table("peak memory of a process from files", peaks, unit="MB")
        print_table("the whole command", _command_seconds(labels, results, arguments.repeats))
        by_detections = _by_detections(arguments.kind, labels, results, arguments.repeats)
        print_table("evaluation by detections", by_detections, ours=next(iter(by_detections)))
    print("AP: " + ", ".join(f"{tool} {values[2]:.12f}" for tool, values in measured.items() if values))


if __name__ == "__main__":
    main()
