"""Average precision on 5,000 pictures with 36,000 objects and 374,000 detections: Otus beside its peers, in one run.

    python benchmarks/evaluation.py [--pictures 5000] [--kind bbox|segm] [--repeats 5] [--skip pycocotools]

`evaluation` starts from what each tool has loaded (arrays here, its own objects there); `files` starts from two JSON files.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _side_by_side import median_seconds, print_header, print_table

CATEGORIES = 80
SIDE = 640


def made_up(pictures: int, *, masks: bool, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Labels and results in COCO's form, 7.2 objects and 75 detections a picture (45 with masks).

    Half of the detections lie near an object, the rest anywhere; as of a detector, those of a picture come by falling
    score, in few categories.
    """
    rng = np.random.default_rng(seed)
    images = [{"id": i + 1, "file_name": f"{i:06d}.jpg", "width": SIDE, "height": SIDE} for i in range(pictures)]
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


def _pycocotools_like(name: str) -> tuple[Any, Any] | None:
    """The COCO and COCOeval of a tool in pycocotools' shape."""
    try:
        if name == "hotcoco":
            from hotcoco import COCO, COCOeval
        elif name == "faster-coco-eval":
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        elif name == "vernier":
            from pycocotools.coco import COCO
            from vernier import COCOeval
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
    except ImportError:
        return None
    return COCO, COCOeval


def _peer(name: str, kind: str, labels: Path, found: Path, repeats: int) -> tuple[float | None, float | None]:
    tool = _pycocotools_like(name)
    if tool is None:
        return None, None
    coco, evaluator = tool

    def judge(truth: Any, results: Any) -> None:
        evaluation = evaluator(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    def load() -> tuple[Any, Any]:
        truth = coco(str(labels))
        return truth, truth.loadRes(str(found))

    truth, results = _quietly(load)()
    slow = name == "pycocotools"
    counts = {"repeats": 1 if slow else repeats, "warm_up": 0 if slow else 1}
    return (
        median_seconds(_quietly(lambda: judge(truth, results)), **counts),
        median_seconds(_quietly(lambda: judge(*load())), **counts),
    )


def _ours(kind: Any, labels: Path, found: Path, repeats: int) -> tuple[float, float]:
    from otus.data.formats.coco_results import read_results
    from otus.data.open import open_dataset
    from otus.inference.evaluation import evaluate_predictions

    def load() -> tuple[Any, Any]:
        dataset = open_dataset(labels)
        return dataset, read_results(found, dataset)

    loaded = load()
    return (
        median_seconds(lambda: evaluate_predictions(*loaded, kinds=[kind]), repeats=repeats),
        median_seconds(lambda: evaluate_predictions(*load(), kinds=[kind]), repeats=repeats),
    )


def main() -> None:
    """Make the data, time everybody, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--kind", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", default="", help="tools to leave out, with commas between")
    chosen = parser.parse_args()
    pictures = chosen.pictures or (1000 if chosen.kind == "segm" else 5000)
    peers = ("hotcoco", "vernier", "faster-coco-eval", "pycocotools")
    print_header(f"average precision ({chosen.kind})", peers)
    document, results = made_up(pictures, masks=chosen.kind == "segm")
    print(
        f"{pictures} pictures, {len(document['annotations'])} objects, {len(results)} detections, {CATEGORIES} categories"
    )
    with tempfile.TemporaryDirectory() as folder:
        labels, found = Path(folder, "labels.json"), Path(folder, "results.json")
        labels.write_text(json.dumps(document))
        found.write_text(json.dumps(results))
        times = {"otus": _ours(chosen.kind, labels, found, chosen.repeats)}
        for peer in peers:
            if peer not in chosen.skip.split(","):
                times[peer] = _peer(peer, chosen.kind, labels, found, chosen.repeats)
        print_table("evaluation, loaded before", {name: time[0] for name, time in times.items()})
        print_table("evaluation from files", {name: time[1] for name, time in times.items()})
        command = [
            sys.executable,
            "-m",
            "otus",
            "evaluate",
            "--data",
            str(labels),
            "--predictions",
            str(found),
            "--json",
        ]
        run = median_seconds(lambda: subprocess.run(command, check=True, capture_output=True), repeats=chosen.repeats)
        print_table("the whole command", {"otus": run})


if __name__ == "__main__":
    main()
