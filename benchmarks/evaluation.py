"""Average precision on 5,000 images with 36,000 objects and 374,000 detections: Otus beside its peers, in one run.

    python benchmarks/evaluation.py [--images 5000] [--kind bbox|segm] [--repeats 5] [--skip pycocotools]

`evaluation` starts from what each tool has loaded (arrays here, its own objects there), `files` from two JSON files; memory
is the peak of a process that does the latter. `otus COCOeval` is our drop-in door with its own COCO. Last come the command
as a person types it, its first call after an install, when the kernels are compiled, and the time by the number of
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


def made_up(photos: int, *, masks: bool, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Labels and results in COCO's form, 7.2 objects and 75 detections an image (45 with masks).

    Half of the detections lie near an object, the rest anywhere; as of a detector, those of an image come by falling
    score, in few categories.
    """
    rng = np.random.default_rng(seed)
    images = [{"id": i + 1, "file_name": f"{i:06d}.jpg", "width": SIDE, "height": SIDE} for i in range(photos)]
    annotations, results = [], []
    for image in images:
        shown = rng.choice(CATEGORIES, size=int(rng.integers(1, 5)), replace=False) + 1
        truths = []
        for _ in range(rng.poisson(7.2)):
            width, height = np.exp(rng.uniform(np.log(8), np.log(300), 2))
            box = np.round([rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height), width, height], 2).tolist()
            record = {
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": int(rng.choice(shown)),
                "bbox": box, "area": round(box[2] * box[3] * 0.7, 2), "iscrowd": int(rng.random() < 0.01),
            }  # fmt: skip
            if masks:
                record["segmentation"] = [_outline(rng, box)]
            truths.append(record)
            annotations.append(record)
        count = rng.poisson(45 if masks else 74.8)
        scores = np.sort(np.round(rng.beta(0.5, 3, count), 4))[::-1].tolist()
        for score in scores:
            if truths and rng.random() < 0.5:
                near = truths[int(rng.integers(len(truths)))]
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
    """The COCO and COCOeval of a tool in pycocotools' shape; ImportError where it is not installed."""
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


def _steps(name: str, kind: Any, labels: Path, found: Path) -> tuple[Callable[[], Any], Callable[..., float]]:
    """How a tool loads two files, and how it makes AP of what it loaded."""
    if name == "otus":
        from otus.data.formats.coco_results import read_results
        from otus.data.open import open_dataset
        from otus.evaluation.evaluate import evaluate_predictions

        def load() -> tuple[Any, Any]:
            dataset = open_dataset(labels)
            return dataset, read_results(found, dataset)

        def judge(*loaded: Any) -> float:
            return evaluate_predictions(*loaded, kinds=[kind]).results[kind].figures["AP"]

        return load, judge
    coco, evaluator = _pycocotools_like(name)

    def load_theirs() -> tuple[Any, Any]:
        truth = coco(str(labels))
        return truth, truth.loadRes(str(found))

    def judge_theirs(*loaded: Any) -> float:
        evaluation = evaluator(*loaded, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return float(evaluation.stats[0])

    return load_theirs, judge_theirs


def _measure(name: str, kind: str, labels: Path, found: Path, repeats: int) -> tuple[float, float, float] | None:
    """Seconds of the evaluation, of loading and evaluation, and AP."""
    try:
        load, judge = _steps(name, kind, labels, found)
    except ImportError:
        return None
    loaded: list[Any] = []
    figures: list[Any] = []

    def load_again() -> None:
        loaded[:] = load()

    def judge_again() -> None:
        figures[:] = [judge(*loaded)]

    # The kernels' first call is measured elsewhere; pycocotools has none, and its half minute need not come again.
    slow = name == "pycocotools"
    counts = {"repeats": 1 if slow else repeats, "warm_up": 0 if slow else 1}
    loading = median_seconds(_quietly(load_again), **counts)
    judging = median_seconds(_quietly(judge_again), **counts)
    return judging, loading + judging, figures[0]


def _peak(name: str, kind: str, labels: Path, found: Path) -> float | None:
    """Megabytes at most in a process of its own."""
    arguments = [sys.executable, __file__, "--peak-of", name, "--kind", kind, "--files", str(labels), str(found)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return float(run.stdout) if run.returncode == 0 else None


def _print_peak(name: str, kind: str, labels: Path, found: Path) -> None:
    load, judge = _steps(name, kind, labels, found)
    _quietly(lambda: judge(*load()))()
    print(_peak_megabytes())


def _peak_megabytes() -> float:
    try:  # what getrusage says includes the process that this one was forked from
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)


def _by_detections(kind: Any, labels: Path, found: Path, repeats: int) -> dict[str, float | None]:
    """Seconds of our evaluation of the same images once, twice, 4 and 8 times."""
    from otus.metrics.detection.average_precision import AveragePrecision
    from otus.metrics.detection.coco import CocoProtocol
    from otus.structures import Objects, Segmentations

    load, _ = _steps("otus", kind, labels, found)
    dataset, predictions = load()

    def tiled(objects: Objects, times: int) -> Objects:
        rows = np.tile(np.arange(len(objects)), times)
        shift = np.repeat(np.arange(times) * len(dataset), len(objects))
        many: dict[str, Any] = {
            name: None if (column := getattr(objects, name)) is None else column[rows]
            for name in ("labels", "boxes_xyxy", "ids", "areas", "is_crowd", "scores")
        }
        outlines: Segmentations | None = objects.segmentations
        return Objects.build(
            image_index=objects.image_index[rows] + shift,
            segmentations=None if outlines is None else outlines.take(rows),
            **many,
        )

    seconds: dict[str, float | None] = {}
    for times in (1, 2, 4, 8):
        sides = tiled(dataset.objects, times), tiled(predictions, times)
        sizes_hw = np.tile(dataset.images.sizes_hw, (times, 1))
        ids = np.arange(len(sizes_hw))

        def judge(sides: Any = sides, ids: Any = ids, sizes_hw: Any = sizes_hw) -> object:
            metric = AveragePrecision(CocoProtocol(kind), dataset.categories)
            return metric.update(*sides, image_ids=ids, sizes_hw=sizes_hw).compute()

        seconds[f"{len(sides[1]):,} detections"] = median_seconds(judge, repeats=min(repeats, 3))
    return seconds


_HOTCOCO = """
import sys
from hotcoco import COCO, COCOeval
truth = COCO(sys.argv[1])
evaluation = COCOeval(truth, truth.loadRes(sys.argv[2]), "bbox")
evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
"""


def _process(command: Sequence[str | Path], **changes: str) -> Callable[[], object]:
    """Run a command whose modules, as after an install, are compiled already."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | changes
    return lambda: subprocess.run(command, check=True, capture_output=True, env=environment)


def _command_seconds(labels: Path, found: Path, repeats: int) -> dict[str, float | None]:
    """The whole command: as it is, beside a script, and in an environment that has never run a kernel, once and again."""
    command = [sys.executable, "-m", "otus", "evaluate", "--data", labels, "--predictions", found, "--json"]
    seconds: dict[str, float | None] = {"otus": median_seconds(_process(command), repeats=repeats)}
    with contextlib.suppress(subprocess.CalledProcessError):
        script = _process([sys.executable, "-c", _HOTCOCO, labels, found])
        seconds["hotcoco, bbox, in a script"] = median_seconds(script, repeats=repeats)
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first in a fresh install", "second there"):
            seconds[name] = median_seconds(_process(command, NUMBA_CACHE_DIR=cache), repeats=1, warm_up=0)
    return seconds


def main() -> None:
    """Make the data, time everybody, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int)
    parser.add_argument("--kind", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", default="", help="tools to leave out, with commas between")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak_of:
        _print_peak(chosen.peak_of, chosen.kind, *chosen.files)
        return
    photos = chosen.images or (1000 if chosen.kind == "segm" else 5000)
    peers = ("hotcoco", "vernier", "faster-coco-eval", "pycocotools")
    tools = [tool for tool in ("otus", "otus COCOeval", *peers) if tool not in chosen.skip.split(",")]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print_header(f"average precision ({chosen.kind})", peers)
    document, results = made_up(photos, masks=chosen.kind == "segm")
    print(
        f"{photos} images, {len(document['annotations'])} objects, {len(results)} detections, {CATEGORIES} categories\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        labels, found = Path(folder, "labels.json"), Path(folder, "results.json")
        labels.write_text(json.dumps(document))
        found.write_text(json.dumps(results))
        del document, results
        measured = {tool: _measure(tool, chosen.kind, labels, found, chosen.repeats) for tool in tools}
        for place, title in enumerate(("evaluation, loaded before", "evaluation from files")):
            print_table(title, {tool: one and one[place] for tool, one in measured.items()})
        peaks = {tool: _peak(tool, chosen.kind, labels, found) for tool in tools}
        print_table("peak memory of a process from files", peaks, unit="MB")
        print_table("the whole command", _command_seconds(labels, found, chosen.repeats))
        by_detections = _by_detections(chosen.kind, labels, found, chosen.repeats)
        print_table("evaluation by detections", by_detections, ours=next(iter(by_detections)))
    print("AP: " + ", ".join(f"{tool} {one[2]:.12f}" for tool, one in measured.items() if one))


if __name__ == "__main__":
    main()
