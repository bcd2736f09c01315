"""Selective Search, Otus and OpenCV (opencv-contrib), one thread each, in one run: time, time by size, recall and MABO.

    python benchmarks/proposals.py [--data ../shared/data/voc2007] [--images 100] [--modes fast,quality] [--repeats 3]
                                   [--seeds 0,1,2] [--parts times,figures] [--plot proposals.png]

Times are for images of the data set resized to 500 x 375, and to increasing sizes; recall and MABO are for the original
images, with the best 500, 1,000 and 2,000 proposals. Otus and OpenCV order proposals at random, so different seeds give
different results (0.01 to 0.02 of recall on 100 images).

The PyPI package selective-search, if it is installed, is timed with ``fast`` on one image only, because it is slow; its
``quality`` has ten times as many strategies. Version 1.1 passes bool masks to scipy.ndimage.find_objects, which NumPy 2.4
rejects: they are converted to integers here, which gives the same result.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _side_by_side import median_seconds, print_header, print_table
from PIL import Image
from scipy import ndimage

from otus.data.dataset import Dataset
from otus.data.open import open_dataset
from otus.metrics.proposals import ProposalProtocol, ProposalRecall, ProposalResult
from otus.proposals.selective_search import SelectiveSearch
from otus.structures import Objects

Search = Callable[[np.ndarray], np.ndarray]
COUNTS = (500, 1000, 2000)
MEGAPIXELS = (0.1, 0.2, 0.5, 1.0, 2.0)


def ours(mode: Any, seed: int = 0) -> Search:
    """Return Otus' Selective Search with one thread."""
    search = SelectiveSearch(mode, seed=seed)
    return lambda image: search(image).boxes_xyxy


def opencv(mode: str) -> Search | None:
    """Return OpenCV's Selective Search with one thread; None if it is not installed."""
    try:
        import cv2

        create = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation
    except (ImportError, AttributeError):
        return None
    cv2.setNumThreads(1)

    def run(image: np.ndarray) -> np.ndarray:
        search = create()
        search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
        if mode == "fast":
            search.switchToSelectiveSearchFast()
        else:
            search.switchToSelectiveSearchQuality()
        boxes = search.process().astype(np.float64)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    return run


def package_fast() -> Search | None:
    """Return the PyPI package selective-search with one thread; None if it is not installed."""
    try:
        import joblib
        import selective_search.structure
    except ImportError:
        return None
    selective_search.structure.find_objects = lambda mask: ndimage.find_objects(mask.astype(np.int8))

    def run(image: np.ndarray) -> np.ndarray:
        with joblib.parallel_config(backend="sequential"), warnings.catch_warnings(action="ignore"):
            return np.array(selective_search.selective_search(image, mode="fast", random_sort=True), dtype=np.float64)

    return run


def resized(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the resized image."""
    return np.asarray(Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.BICUBIC))


def evaluate(dataset: Dataset, indices: np.ndarray, search: Search) -> tuple[ProposalResult, float]:
    """Return recall and MABO on some images, and the seconds per image."""
    assert dataset.objects is not None
    subset = dataset.select(indices)
    assert subset.objects is not None
    metric = ProposalRecall(dataset.categories, ProposalProtocol(COUNTS))
    boxes, seconds = [], 0.0
    for index in range(len(subset)):
        image = subset.image(index)
        start = time.perf_counter()
        boxes.append(search(image))
        seconds += time.perf_counter() - start
    counts = [len(boxes_per_image) for boxes_per_image in boxes]
    proposals = Objects.build(
        image_index=np.repeat(np.arange(len(subset)), counts),
        labels=np.zeros(sum(counts), dtype=np.int64),
        boxes_xyxy=np.concatenate(boxes),
        scores=np.concatenate([-np.arange(count, dtype=np.float64) for count in counts]),
    )
    return metric.update(subset.objects, proposals, image_ids=range(len(subset))).compute(), seconds / len(subset)


def print_times(
    mode: str, tools: dict[str, Search | None], dataset: Dataset, indices: np.ndarray, *, repeats: int
) -> None:
    """Print the seconds for images of 500 x 375, and by size."""
    timed = [resized(dataset.image(int(index)), (375, 500)) for index in indices[:: max(1, len(indices) // 5)][:5]]
    seconds: dict[str, float | None] = dict.fromkeys(tools)
    for name, search in tools.items():
        if search is None:
            continue
        images, num_repeats = (timed, repeats) if name != "selective-search" else (timed[:1], 1)
        counts: list[int] = []
        times = [
            median_seconds(
                lambda s=search, i=image, c=counts: c.append(len(s(i))), repeats=num_repeats, warm_up=num_repeats > 1
            )
            for image in images
        ]
        seconds[name] = float(np.mean(times))
        print(f"{mode} {name}: {np.mean(counts):.0f} proposals per image of 500 x 375, {len(images)} images timed")
    print_table(f"{mode}, 500 x 375, mean over images of the median time", seconds)
    print(f"## {mode} by size, seconds per megapixel")
    for size in MEGAPIXELS:
        side = (size * 1e6 / 12) ** 0.5
        image = resized(dataset.image(0), (round(3 * side), round(4 * side)))
        cells = [f"{size:4.1f} megapixels"]
        for name in ("otus", "opencv"):
            search = tools[name]
            if search is not None:
                num_repeats = repeats if name == "otus" else 1
                elapsed = median_seconds(lambda s=search, i=image: s(i), repeats=num_repeats, warm_up=0)
                cells.append(f"{name} {elapsed / size:7.3f}")
        print("  ".join(cells), flush=True)


def print_figures(
    mode: str, tools: dict[str, Search | None], dataset: Dataset, indices: np.ndarray
) -> dict[str, ProposalResult]:
    """Print and return recall and MABO on the original images."""
    results = {}
    print(f"\n## {mode}, {len(indices)} images of {dataset.source.name} val: recall at IoU 0.5, at 0.7, MABO")
    for name, search in tools.items():
        if search is None:
            continue
        result, elapsed = evaluate(dataset, indices, search)
        results[name] = result
        by_count = [(*result.recall[:, c], result.mabo[c]) for c in range(len(COUNTS))]
        cells = [
            f"{count}: " + " ".join(f"{value:.3f}" for value in values)
            for count, values in zip(COUNTS, by_count, strict=True)
        ]
        print(f"{name:12s} {'  '.join(cells)}  ({result.proposals_per_image:.0f} per image, {elapsed:.3f} s)")
    return results


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "voc2007")
    parser.add_argument("--images", type=int, default=100, help="number of images of the split val, evenly spaced")
    parser.add_argument("--modes", default="fast,quality")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", default="0", help="seeds of the random order of Otus' proposals")
    parser.add_argument("--parts", default="times,figures", help="times need an idle machine, figures take long")
    parser.add_argument("--plot", type=Path, help="PNG file for a plot of recall and MABO")
    options = parser.parse_args()
    print_header("Selective Search", ("opencv-contrib-python-headless", "selective-search", "numba"))
    if not options.data.is_dir():
        print(f"there are no images at {options.data}")
        return
    dataset = open_dataset(options.data, format="coco", split="val")
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(options.images, len(dataset))).round().astype(np.int64))
    results: dict[str, ProposalResult] = {}
    for mode in options.modes.split(","):
        tools = {"otus": ours(mode), "opencv": opencv(mode)}
        if mode == "fast":
            tools["selective-search"] = package_fast()
        if "times" in options.parts:
            print_times(mode, tools, dataset, indices, repeats=options.repeats)
        if "figures" in options.parts:
            evaluated = {f"otus, seed {seed}": ours(mode, int(seed)) for seed in options.seeds.split(",")}
            evaluated["opencv"] = tools["opencv"]
            by_tool = print_figures(mode, evaluated, dataset, indices)
            results |= {f"{name} {mode}": result for name, result in by_tool.items()}
        print(flush=True)
    if options.plot:
        from otus.reports.proposals import proposal_plot

        proposal_plot(results).savefig(options.plot, dpi=120)


if __name__ == "__main__":
    main()
