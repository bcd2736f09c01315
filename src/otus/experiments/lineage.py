"""Time R-CNN, SPP-net, Fast R-CNN and Faster R-CNN on one machine: seconds per image, with and without proposals.

All systems use the same backbone and images, the first three the same proposals from Selective Search. Weights are
random, because the time hardly depends on them; only NMS is faster, with few detections.

The published seconds were measured on a GPU of 2015 with VGG-16 (Fast R-CNN, arXiv:1504.08083, table 4, and Faster
R-CNN, arXiv:1506.01497, table 5; for SPP-net the lecture's).
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import UInt8

from otus._files import staged_file
from otus.data.sample import Sample
from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import UsageError
from otus.inference.devices import choose_precision
from otus.inference.predictor import Predictor
from otus.parts.regions.crops import WarpedCrops
from otus.proposals.interface import ResizedProposer
from otus.proposals.selective_search import SelectiveSearch
from otus.structures import Categories
from otus.zoo.models import build_model, model_entry

SYSTEMS = ("rcnn", "spp_net", "fast_rcnn", "faster_rcnn")
PUBLISHED_WITH = {"rcnn": 49.0, "spp_net": 4.3, "fast_rcnn": 2.3, "faster_rcnn": 0.2}
PUBLISHED_WITHOUT = {"rcnn": 47.0, "spp_net": 2.3, "fast_rcnn": 0.32}
PROPOSALS = 2000
_CATEGORIES = Categories(tuple(f"category {i}" for i in range(1, 21)))  # 20, as in VOC
_MIN_IMAGES = 3

Report = Callable[[str, int, int], object]
"""Called with the current stage, and the numbers of finished and of all crops or images."""
NamedImage = tuple[str, UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Timing:
    """Time of one system on one image.

    Parameters
    ----------
    system, image
        Names of the system and the image.
    proposals
        Number of proposals that were classified.
    proposal_s
        Seconds of Selective Search; None if the network has an RPN.
    network_s
        Seconds from the pixels to the detections, without Selective Search.
    """

    system: str
    image: str
    proposals: int
    proposal_s: float | None
    network_s: float


@dataclass(frozen=True)
class LineageTable:
    """All timings, and the conditions of the measurement."""

    backbone: str
    precision: str
    threads: int
    timings: Sequence[Timing]

    def rows(self) -> list[dict[str, Any]]:
        """Return means over the images: seconds with and without proposals, speed-up over R-CNN, and the published
        figures."""
        rows: list[dict[str, Any]] = []
        for system in SYSTEMS:
            timings = [timing for timing in self.timings if timing.system == system]
            network_s = mean(timing.network_s for timing in timings)
            proposal_s = [timing.proposal_s for timing in timings if timing.proposal_s is not None]
            rows.append(
                {
                    "system": system,
                    "proposals": round(mean(timing.proposals for timing in timings)),
                    "with_proposals_s": network_s + (mean(proposal_s) if proposal_s else 0.0),
                    "without_s": network_s if proposal_s else None,
                }
            )
        for row in rows:
            for name, published in (("with_proposals_s", PUBLISHED_WITH), ("without_s", PUBLISHED_WITHOUT)):
                seconds = row[name]
                prefix = name.removesuffix("_s")
                row[f"{prefix}_speedup"] = None if seconds is None else rows[0][name] / seconds
                row[f"{prefix}_published_s"] = published.get(row["system"])
                row[f"{prefix}_published_speedup"] = (
                    published["rcnn"] / published[row["system"]] if row["system"] in published else None
                )
        return rows

    def document(self) -> dict[str, Any]:
        """Return the document of ``otus benchmark lineage --json``."""
        return {
            "backbone": self.backbone,
            "weights": "random",
            "precision": self.precision,
            "threads": self.threads,
            "images": list(dict.fromkeys(timing.image for timing in self.timings)),
            "rows": self.rows(),
            "timings": [asdict(timing) for timing in self.timings],
        }


def measure_lineage(
    images: Sequence[NamedImage],
    *,
    small: bool = False,
    proposals: int = PROPOSALS,
    precision: str = "auto",
    folder: str | Path = "otus-lineage",
    report: Report = lambda what, done, total: None,
) -> LineageTable:
    """Time the four systems on the same images.

    Parameters
    ----------
    images
        At least three images with their names.
    small
        Use EfficientNet-Lite0 on images of 320 pixels instead of VGG-16 on 600.
    proposals
        Maximum number of proposals per image for the first three systems.
    precision
        See :class:`~otus.inference.predictor.Predictor`.
    folder
        Folder to which each timing is written at once; a second run measures only the missing ones.
    report
        Called with the current stage, and the numbers of finished and of all crops or images.

    Raises
    ------
    UsageError
        If there are fewer than three images.
    """
    if len(images) < _MIN_IMAGES:
        raise UsageError(f"lineage: expected at least {_MIN_IMAGES} images, got {len(images)}")
    if proposals < 1:
        raise UsageError(f"proposals: expected 1 or more, got {proposals}")
    backbone = "efficientnet_lite0" if small else "vgg16"
    precision, timings = choose_precision(precision, torch.device("cpu")), []
    selective_search = ResizedProposer(SelectiveSearch())
    selective_search(images[0][1])  # warm-up: kernels are compiled or loaded
    searches = []
    for index, (name, image) in enumerate(images):
        report(f"selective search: {name}", index, len(images))
        start = time.perf_counter()
        boxes = selective_search(image).best(proposals).boxes_xyxy  # not cached: the search is fast
        searches.append((boxes, time.perf_counter() - start))
    for system in SYSTEMS:
        predictor = None
        for index, ((name, image), (boxes, search_s)) in enumerate(zip(images, searches, strict=True)):
            given_boxes = None if system == "faster_rcnn" else boxes
            conditions = [system, backbone, precision, torch.get_num_threads(), proposals]
            file = Path(folder) / f"{system}-{_digest(image, conditions)}.json"
            saved = _read_timing(file)
            if saved is not None:
                timings.append(dataclasses.replace(saved, image=name))
                continue
            if predictor is None:
                report(f"{system}: building", index, len(images))
                predictor = _predictor(f"{system}_{backbone}", proposals, precision)
                _detect(predictor, image, None if given_boxes is None else given_boxes[:8])  # warm-up
            with _counting_crops(predictor.system, f"{system}: {name}", report, total=len(boxes)):
                num_proposals, network_s = _detect(predictor, image, given_boxes)
            timings.append(Timing(system, name, num_proposals, None if given_boxes is None else search_s, network_s))
            with staged_file(file) as stage:
                stage.write_text(json.dumps(asdict(timings[-1])) + "\n")
            report(system, index + 1, len(images))
    return LineageTable(backbone, precision, torch.get_num_threads(), timings)


def _predictor(model: str, proposals: int, precision: str) -> Predictor:
    """Return a predictor of a model of the zoo with random weights."""
    torch.manual_seed(0)
    arguments = {} if model.startswith("faster") else {"proposals": proposals}
    system = build_model(model, _CATEGORIES, arguments)
    preprocess = model_entry(model).preprocess
    return Predictor(system, preprocess=preprocess, name=model, device="cpu", precision=precision)


def _detect(predictor: Predictor, image: np.ndarray, boxes: np.ndarray | None) -> tuple[int, float]:
    """Return the number of classified proposals, and the seconds from the image's pixels to the detections."""
    start = time.perf_counter()
    columns = {} if boxes is None else {"proposals_xyxy": boxes}
    record: Any = predictor.pipeline.stages(predictor.preprocess.prepare(Sample(image, "image", columns=columns)))
    return len(record.proposals.boxes[0]), time.perf_counter() - start


@contextmanager
def _counting_crops(system: RegionDetector, description: str, report: Report, *, total: int) -> Iterator[None]:
    """Report the number of crops that passed the backbone, for systems that run it on each region (R-CNN)."""
    if not isinstance(system.region_features, WarpedCrops):
        yield
        return
    done = 0

    def count(module: object, inputs: tuple[torch.Tensor], outputs: object) -> None:
        nonlocal done
        done += len(inputs[0])
        report(description, done, total)

    hook = system.region_features.backbone.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _read_timing(path: Path) -> Timing | None:
    """Read a saved timing; return None if the file is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Timing)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _digest(image: np.ndarray, conditions: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps([*conditions, image.shape]).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()[:12]
