"""Interactive segmentation, Otus, PyMaxflow and OpenCV's GrabCut, one thread each, in one run: time, flow, IoU, clicks.

    python benchmarks/interactive.py [--data ../shared/data/interactive] [--parts flow,answers,boxes,strokes,clicks]
                                     [--images 4] [--repeats 3] [--every 1]

Times are CPU seconds of the thread, so that other work on the machine does not count. Flow: the capacities of GraphCut on
the first images, resized, with 8 neighbours; PyMaxflow (GPL, used for this comparison only) by its functions for grids.
Answers: GraphCut with four points, then with a fifth. Boxes: rects.txt beside the images. Strokes: three on the object and
three on background, drawn at random from the masks. Clicks: NoC by simulated clicks.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _side_by_side import print_header, print_table
from PIL import Image

from otus.data.dataset import Dataset
from otus.data.open import open_dataset
from otus.evaluation.clicking import click_targets, evaluate_method
from otus.interactive.grab_cut import GrabCut
from otus.interactive.graph_cut import COST_UNIT, SEED_COST, GraphCut, GridEmbedding, edge_costs
from otus.interactive.max_flow import GridFlow
from otus.metrics.clicks import next_click
from otus.structures import Prompt, Stroke

try:
    import maxflow
except ImportError:
    maxflow = None
try:
    import cv2

    cv2.setNumThreads(1)
except ImportError:
    cv2 = None

SIZES_HW = ((375, 500), (480, 640), (1080, 1920))
STRUCTURES = ([[0, 0, 0], [0, 0, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
              [[0, 0, 0], [0, 0, 0], [1, 0, 0]])  # fmt: skip


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of a call, after a warm-up call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def resized(image: np.ndarray, mask: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and a mask, resized."""
    larger = Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.BICUBIC)
    return np.asarray(larger), np.asarray(Image.fromarray(mask).resize(size_hw[::-1], Image.Resampling.NEAREST))


def four_clicks(image: np.ndarray, mask: np.ndarray) -> Prompt:
    """Return a prompt of four simulated clicks for GraphCut, each in the middle of the largest error."""
    method, prompt, predicted = GraphCut(), Prompt(), np.zeros_like(mask)
    embedding = method.embed(image)
    for _ in range(4):
        click = next_click(predicted, mask)
        if click is None:
            break
        points, labels = [*np.asarray(prompt.points_xy).tolist(), click[:2]], [*prompt.point_labels, click.label]
        prompt = Prompt(points, labels)
        predicted = method.segment(embedding, prompt).best()
    return prompt


def cut_problem(image: np.ndarray, prompt: Prompt, smoothness: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the source, sink and edge capacities of GraphCut, at full resolution."""
    method = GraphCut(smoothness=smoothness)
    embedding = GridEmbedding.from_image(image, max_pixels=1 << 30)
    marks = prompt.seeds(embedding.size_hw, point_radius=6)
    *_, last = method.cut_rounds(embedding, marks, 2)
    costs = np.rint(last.region_terms[1] * COST_UNIT).astype(np.int32)
    costs[marks == 1], costs[marks == 0] = SEED_COST, -SEED_COST
    return np.maximum(costs, 0), np.maximum(-costs, 0), edge_costs(embedding.squared_differences, smoothness)


def pymaxflow(source: np.ndarray, sink: np.ndarray, edges: np.ndarray) -> int:
    """Return the maximum flow by PyMaxflow."""
    graph = maxflow.Graph[int](source.size, 4 * source.size)
    nodes = graph.add_grid_nodes(source.shape)
    for structure, weights in zip(STRUCTURES, edges, strict=True):
        graph.add_grid_edges(nodes, weights=weights, structure=np.array(structure), symmetric=True)
    graph.add_grid_tedges(nodes, source, sink)
    return graph.maxflow()


def flow_and_answers(dataset: Dataset, count: int, repeats: int, parts: list[str]) -> None:
    """Time maximum flow, Otus and PyMaxflow, then the whole of GraphCut, and a fifth point."""
    for size_hw in SIZES_HW:
        rows: dict[str, list[float]] = {}
        for index in range(count):
            image, mask = resized(dataset.image(index), next(click_targets(dataset, index))[0], size_hw)
            prompt = four_clicks(image, mask)
            for smoothness in (10.0, 50.0):
                problem = cut_problem(image, prompt, smoothness)
                ours = GridFlow(problem[2], neighbors=8).solve(*problem[:2]).flow
                if maxflow is not None:
                    assert pymaxflow(*problem) == ours
                    rows.setdefault("PyMaxflow", []).append(seconds(lambda p=problem: pymaxflow(*p), repeats))
                run = lambda p=problem: GridFlow(p[2], neighbors=8).solve(*p[:2])  # noqa: E731
                rows.setdefault("otus", []).append(seconds(run, repeats))
            if "answers" in parts:
                method = GraphCut()
                segment = lambda i=image, p=prompt, m=method: m.segment(m.embed(i), p)  # noqa: E731
                rows.setdefault("GraphCut, four points", []).append(seconds(segment, repeats))
                embedding = method.embed(image)
                further = Prompt([*np.asarray(prompt.points_xy).tolist(), [9.5, 9.5]], [*prompt.point_labels, 0])
                times = []
                for _ in range(repeats):
                    method.segment(embedding, prompt)
                    start = time.thread_time()
                    method.segment(embedding, further)
                    times.append(time.thread_time() - start)
                rows.setdefault("GraphCut, a fifth point", []).append(statistics.median(times))
        means = {name: statistics.mean(values) for name, values in rows.items()}
        print_table(f"{size_hw[0]} x {size_hw[1]}, mean over {count} images; flows equal", means)


def iou(mask: np.ndarray, ground_truth: np.ndarray, ignore: np.ndarray | None) -> float:
    """Return the IoU over the pixels that are not ignored."""
    valid = np.ones_like(ground_truth) if ignore is None else ~ignore
    return float((mask & ground_truth & valid).sum() / max(((mask | ground_truth) & valid).sum(), 1))


def boxes(dataset: Dataset, folder: Path, every: int, repeats: int) -> None:
    """Evaluate and time GrabCut with the boxes of rects.txt."""
    rects = {
        line.split()[0]: [int(value) for value in line.split()[1:]]
        for line in (folder / "rects.txt").open()
        if line.strip()
    }
    figures: dict[str, list[tuple[float, float, float]]] = {}
    for index in range(0, len(dataset), every):
        image = dataset.image(index)
        ground_truth, ignore = next(click_targets(dataset, index))
        x, y, width, height = rects[f"{Path(dataset.images.files[index]).stem}.png"]
        x2, y2, x, y = min(x + width, image.shape[1]), min(y + height, image.shape[0]), max(x, 0), max(y, 0)
        for name, run in (("otus", otus_grab_cut), ("OpenCV, 5 iterations", opencv_grab_cut)):
            if run is opencv_grab_cut and cv2 is None:
                continue
            start = time.thread_time()
            mask = run(image, (x, y, x2, y2))
            elapsed = time.thread_time() - start
            errors = (mask != ground_truth) & (np.ones_like(ground_truth) if ignore is None else ~ignore)
            figures.setdefault(name, []).append((iou(mask, ground_truth, ignore), float(errors.mean()), elapsed))
    for column, title in enumerate(("IoU", "error rate, fraction of pixels", "seconds per image")):
        values = {name: statistics.mean(row[column] for row in rows) for name, rows in figures.items()}
        print_table(f"GrabCut from the boxes of {len(figures['otus'])} images: {title}", values, unit="")
    image, ground_truth = dataset.image(0), next(click_targets(dataset, 0))[0]
    for size_hw in SIZES_HW[1:]:
        larger, mask = resized(image, ground_truth, size_hw)
        rows, columns = np.nonzero(mask)
        box = (max(columns.min() - 20, 0), max(rows.min() - 20, 0), columns.max() + 20, rows.max() + 20)
        values = {"otus": seconds(lambda i=larger, b=box: otus_grab_cut(i, b), repeats)}
        if cv2 is not None:
            start = time.thread_time()
            opencv_grab_cut(larger, box, iterations=1)
            values["OpenCV, 1 iteration"] = time.thread_time() - start
        print_table(f"GrabCut, {size_hw[0]} x {size_hw[1]}", values)


def otus_grab_cut(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the mask of Otus' GrabCut."""
    method = GrabCut()
    return method.segment(method.embed(image), Prompt(box_xyxy=box)).best()


def opencv_grab_cut(image: np.ndarray, box: tuple[int, int, int, int], *, iterations: int = 5) -> np.ndarray:
    """Return the mask of OpenCV's GrabCut."""
    cv2.setRNGSeed(0)
    mask = np.zeros(image.shape[:2], np.uint8)
    x1, y1, x2, y2 = (int(value) for value in box)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(image[..., ::-1])
    cv2.grabCut(bgr, mask, (x1, y1, x2 - x1, y2 - y1), *models, iterations, cv2.GC_INIT_WITH_RECT)
    return (mask & 1).astype(bool)


def strokes(dataset: Dataset, every: int) -> None:
    """Evaluate GraphCut with strokes: Otus', and Boykov and Jolly's original method."""
    from scipy.ndimage import distance_transform_edt

    methods = {"otus": GraphCut(), "Boykov and Jolly": GraphCut(location=0, rounds=1, max_color=9)}
    figures: dict[str, list[float]] = {name: [] for name in methods}
    for index in range(0, len(dataset), every):
        image = dataset.image(index)
        ground_truth, ignore = next(click_targets(dataset, index))
        rng = np.random.default_rng(index)
        lines = []
        background = ~ground_truth if ignore is None else ~ground_truth & ~ignore
        for label, region in ((1, ground_truth), (0, background)):
            inner = np.argwhere(distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] > 3)
            for _ in range(3 if len(inner) else 0):
                start = inner[rng.integers(len(inner))]
                end = inner[np.abs(inner - start).sum(axis=1).argsort()[rng.integers(min(len(inner), 4000))]]
                steps = np.linspace(start, end, 50)
                inside = region[tuple(steps.astype(int).T)]
                line = steps[: 50 if inside.all() else max(int(inside.argmin()), 1)]
                lines.append(Stroke(line[:, ::-1] + 0.5, label, 3))
        for name, method in methods.items():
            mask = method.segment(method.embed(image), Prompt(strokes=lines)).best()
            figures[name].append(iou(mask, ground_truth, ignore))
    values = {name: statistics.mean(ious) for name, ious in figures.items()}
    print_table(f"strokes, 3 on the object and 3 on background, {len(figures['otus'])} images: IoU", values, unit="")


def clicks(dataset: Dataset, every: int) -> None:
    """Evaluate GraphCut with simulated clicks: Otus', and Boykov and Jolly's original method."""
    subset = dataset.select(range(0, len(dataset), every))
    for name, method in (("GraphCut", GraphCut()), ("Boykov and Jolly", GraphCut(location=0, rounds=1, max_color=9))):
        figures = evaluate_method(subset, method).result.figures
        print(f"{name}, {len(subset)} images: " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/interactive"))
    parser.add_argument("--parts", default="flow,answers,boxes,strokes,clicks")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    print_header("Interactive segmentation", ("PyMaxflow", "opencv-contrib-python-headless", "numba"))
    dataset = open_dataset(arguments.data)
    parts = arguments.parts.split(",")
    if "flow" in parts or "answers" in parts:
        flow_and_answers(dataset, arguments.images, arguments.repeats, parts)
    if "boxes" in parts:
        boxes(dataset, arguments.data, arguments.every, arguments.repeats)
    if "strokes" in parts:
        strokes(dataset, arguments.every)
    if "clicks" in parts:
        clicks(dataset, arguments.every)


if __name__ == "__main__":
    main()
