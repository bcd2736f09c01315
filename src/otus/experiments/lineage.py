"""Time R-CNN, SPP-net, Fast R-CNN and Faster R-CNN on one machine: seconds per image, with and without proposals.

All systems use the same backbone and images, the first three the same proposals from Selective Search. Weights are
random, because time does not depend on them, except for NMS, which has little to do then.

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
_TWENTY = Categories(tuple(f"category {i}" for i in range(1, 21)))  # as in VOC
_LEAST_IMAGES = 3

Report = Callable[[str, int, int], object]
Image = tuple[str, UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Timing:
    """Time of one system on one image. ``proposal_s`` is that of Selective Search; None if the network has an RPN."""

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
            own = [one for one in self.timings if one.system == system]
            without = mean(one.network_s for one in own)
            searched = [one.proposal_s for one in own if one.proposal_s is not None]
            rows.append(
                {
                    "system": system,
                    "proposals": round(mean(one.proposals for one in own)),
                    "with_proposals_s": without + (mean(searched) if searched else 0.0),
                    "without_s": without if searched else None,
                }
            )
        for row in rows:
            for name, published in (("with_proposals_s", PUBLISHED_WITH), ("without_s", PUBLISHED_WITHOUT)):
                seconds = row[name]
                short = name.removesuffix("_s")
                row[f"{short}_speedup"] = None if seconds is None else rows[0][name] / seconds
                row[f"{short}_published_s"] = published.get(row["system"])
                row[f"{short}_published_speedup"] = (
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
            "images": list(dict.fromkeys(one.image for one in self.timings)),
            "rows": self.rows(),
            "timings": [asdict(one) for one in self.timings],
        }


def measure_lineage(
    images: Sequence[Image],
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
    if len(images) < _LEAST_IMAGES:
        raise UsageError(f"lineage: expected at least {_LEAST_IMAGES} images, got {len(images)}")
    if proposals < 1:
        raise UsageError(f"proposals: expected 1 or more, got {proposals}")
    backbone = "efficientnet_lite0" if small else "vgg16"
    precision, timings = choose_precision(precision, torch.device("cpu")), []
    searched = [_search(one, proposals, report, place=(i, len(images))) for i, one in enumerate(images)]
    for system in SYSTEMS:
        predictor = None
        for number, ((name, image), (boxes, seconds)) in enumerate(zip(images, searched, strict=True)):
            own = None if system == "faster_rcnn" else boxes
            conditions = [system, backbone, precision, torch.get_num_threads(), proposals]
            kept = Path(folder) / f"{system}-{_digest(image, conditions)}.json"
            before = _read(kept)
            if before is not None:
                timings.append(dataclasses.replace(before, image=name))
                continue
            if predictor is None:
                report(f"{system}: building", number, len(images))
                predictor = _predictor(f"{system}_{backbone}", proposals, precision)
                _stages(predictor, image, None if own is None else own[:8])  # warm-up
            with _counting_crops(predictor.system, f"{system}: {name}", report, total=len(boxes)):
                found, network_s = _stages(predictor, image, own)
            timings.append(Timing(system, name, found, None if own is None else seconds, network_s))
            with staged_file(kept) as stage:
                stage.write_text(json.dumps(asdict(timings[-1])) + "\n")
            report(system, number + 1, len(images))
    return LineageTable(backbone, precision, torch.get_num_threads(), timings)


def _search(named_image: Image, count: int, report: Report, *, place: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return the proposals of an image in its pixels, and their seconds; not cached, because the search is fast."""
    name, image = named_image
    report(f"selective search: {name}", *place)
    search = ResizedProposer(SelectiveSearch())
    if place[0] == 0:
        search(image)  # warm-up: kernels are compiled or loaded
    start = time.perf_counter()
    boxes = search(image).best(count).boxes_xyxy
    return boxes, time.perf_counter() - start


def _predictor(model: str, proposals: int, precision: str) -> Predictor:
    torch.manual_seed(0)
    arguments = {} if model.startswith("faster") else {"proposals": proposals}
    system = build_model(model, _TWENTY, arguments)
    preprocess = model_entry(model).preprocess
    return Predictor(system, preprocess=preprocess, name=model, device="cpu", precision=precision)


def _stages(predictor: Predictor, image: np.ndarray, boxes: np.ndarray | None) -> tuple[int, float]:
    """Return the number of proposals classified, and the seconds from the image's pixels to the detections."""
    start = time.perf_counter()
    columns = {} if boxes is None else {"proposals_xyxy": boxes}
    record: Any = predictor.pipeline.stages(predictor.preprocess.prepare(Sample(image, "image", columns=columns)))
    return len(record.proposals.boxes[0]), time.perf_counter() - start


@contextmanager
def _counting_crops(system: RegionDetector, what: str, report: Report, *, total: int) -> Iterator[None]:
    """Report the number of crops that passed the backbone, for systems that run it on each region."""
    if not isinstance(system.region_features, WarpedCrops):
        yield
        return
    done = 0

    def count(module: object, given: tuple[torch.Tensor], maps: object) -> None:
        nonlocal done
        done += len(given[0])
        report(what, done, total)

    hook = system.region_features.backbone.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _read(path: Path) -> Timing | None:
    """Read a saved timing; None if there is none or the file is incomplete."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Timing)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _digest(image: np.ndarray, conditions: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps([*conditions, image.shape]).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()[:12]
