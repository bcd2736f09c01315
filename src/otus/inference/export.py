"""Models as files of ONNX or OpenVINO: written, checked against the model, and loaded for prediction.

What is written is the system's own ``forward``: a batch of prepared images of one size in, detections or logits by name
out, NMS inside. ``torch.export`` traces it with sizes left open. The file says what it is
(:class:`~otus.inference.exported.ExportedModel`), so that :func:`otus.load` needs nothing else.
"""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.utils import _pytree as pytree

from otus.data.sample import Sample
from otus.data.scenes.generator import Scenes
from otus.errors import ExportError, UsageError
from otus.inference.exported import ExportedModel
from otus.inference.predictor import Predictor
from otus.inference.runtimes import METADATA, Session, first_line_of, installed, onnx_program, open_session
from otus.parts.backbones.norms import fuse_frozen_norms

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
"""The formats, and the suffix of each one's file."""
TOLERANCE = 1e-4
"""How far an output may be from the model's, as a share of its largest value, or of 1 if that is more."""
MASK_TOLERANCE = 1e-3
"""The same of masks, which are read at boxes that already differ."""
_TRACED_HW = (300, 340)
_CHECKED_HW = ((240, 320), (320, 240))


@dataclass(frozen=True)
class Export:
    """A file that was written and checked.

    Parameters
    ----------
    file
        The file; OpenVINO's weights lie beside it, in ``….bin``.
    apart
        By output, the largest difference from the model's.
    objects
        Detections that were compared; None of models that detect none.
    """

    file: Path
    apart: Mapping[str, float]
    objects: int | None

    def __str__(self) -> str:
        what = "" if self.objects is None else f" over {self.objects} detections"
        apart = ", ".join(f"{name} {value:.1e}" for name, value in self.apart.items())
        return f"{self.file}: {_size(self.file) / 1e6:.1f} MB; largest difference from the model{what}: {apart}"


def export_model(
    predictor: Predictor, file: str | Path, *, format: str = "onnx", images: Sequence[np.ndarray] = ()
) -> Export:
    """Write a model as a file that runs without Otus, and check that it predicts the same.

    Parameters
    ----------
    predictor
        The model, in precision ``exact``.
    file
        Where to write; nothing is left there if the check fails.
    format
        ``onnx``, or ``openvino``: an ``….xml`` and its ``….bin``.
    images
        uint8 (H, W, 3) images to check with (default: synthetic scenes).

    Raises
    ------
    ExportError
        If the model cannot be exported, or the file predicts something else.
    UsageError
        If there is no such format.
    MissingExtraError
        If a package of the extra ``export`` is not installed.
    """
    if format not in SUFFIXES:
        raise UsageError(f"format: expected one of {', '.join(SUFFIXES)}, got {format!r}")
    for package in ("onnx", "onnxscript", "onnxruntime" if format == "onnx" else "openvino"):
        installed(package)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        staged = Path(folder) / file.with_suffix(SUFFIXES[format]).name
        program = _onnx_program(predictor)
        onnx_file = staged.with_suffix(".onnx")
        program.save(onnx_file)
        if format == "openvino":
            _as_openvino(onnx_file, staged)
        session = open_session(staged)
        shown = images or [Scenes(1, size_hw=size_hw, seed=i).scene(0).image for i, size_hw in enumerate(_CHECKED_HW)]
        apart, objects = compare_outputs(predictor, session, shown)
        del session  # Windows does not rename an open file
        for written in Path(folder).iterdir():
            written.replace(file.parent / written.name)
    return Export(file.with_suffix(SUFFIXES[format]), apart, objects)


def compare_outputs(
    predictor: Predictor, session: Session, images: Sequence[np.ndarray]
) -> tuple[dict[str, float], int | None]:
    """Return by output how far a session is from the model, and how many detections were compared.

    Raises
    ------
    ExportError
        If they differ by more than the tolerance.
    """
    apart: dict[str, float] = {}
    objects = None
    samples = [predictor.pipeline.prepare(Sample(image, "checked")) for image in images]
    for together in ([samples[0]], samples):
        record = predictor.system.stages(together, postprocess=predictor.system.postprocess)
        expected = {name: x.numpy(force=True) for name, x in predictor.system.tensors(record).items()}
        batch = record.batch
        try:
            found = session.run(
                images=batch.images.numpy(force=True), sizes_hw=np.array(batch.sizes_hw, dtype=np.int64)
            )
        except Exception as error:  # each runtime has its own
            raise ExportError(
                f"export: the exported file fails on a batch of {len(together)}, so this model cannot be exported: "
                f"{first_line_of(error)}; nothing was written"
            ) from error
        if "boxes" in expected:
            if len(expected["boxes"]) != len(found["boxes"]):
                raise ExportError(
                    f"export: the model finds {len(expected['boxes'])} objects and the exported file "
                    f"{len(found['boxes'])} on the same images; nothing was written"
                )
            objects = (objects or 0) + len(found["boxes"])
            order = _same_order(expected, found)
            found = {name: x[order] for name, x in found.items()}
        for name, reference in expected.items():
            difference = float(np.abs(found[name].astype(np.float64) - reference).max(initial=0))
            allowed = MASK_TOLERANCE if name == "masks" else TOLERANCE
            if difference > allowed * max(1.0, float(np.abs(reference).max(initial=0))):
                raise ExportError(
                    f"export: {name} of the exported file are up to {difference:.2g} from the model's, at most "
                    f"{allowed:g} of the largest value is expected; nothing was written"
                )
            if name not in ("image_index", "labels"):
                apart[name] = max(apart.get(name, 0.0), difference)
    return apart, objects


def _same_order(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pair the detections of both: nearly equal scores may change places."""
    cost = np.abs(expected["boxes"][:, None] - found["boxes"]).max(axis=2, initial=0)
    for name in ("image_index", "labels"):
        cost = cost + 1e6 * (expected[name][:, None] != found[name])
    return linear_sum_assignment(cost)[1]


def _onnx_program(predictor: Predictor) -> Any:
    system = predictor.system
    if system.original_image_search is not None:
        raise ExportError(
            f"{predictor.name} cannot be exported: it looks at proposals that are searched on the original image, which is "
            "no network; export a model that proposes by itself, such as Faster R-CNN"
        )
    facts = ExportedModel(
        predictor.name,
        predictor.task.name,
        predictor.categories,
        predictor.preprocess.to_dict(),
        None if system.postprocess is None else asdict(system.postprocess),
        predictor.score_thresholds,
        system.size_divisor,
        system.min_size,
    )
    divisor = system.size_divisor
    sides = [-(-side // divisor) for side in predictor.preprocess.fixed_hw or _TRACED_HW]
    images = torch.zeros(2, 3, *(side * divisor for side in sides))
    sizes_hw = torch.tensor([images.shape[2:]] * 2)
    left_open: dict[int, Any] = {0: torch.export.Dim.AUTO}
    if predictor.preprocess.fixed_hw is None:
        for axis, name in ((2, "rows"), (3, "columns")):
            left_open[axis] = divisor * torch.export.Dim(name) if divisor > 1 else torch.export.Dim.AUTO
    inputs = {"images": images, "sizes_hw": sizes_hw}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        try:
            module = fuse_frozen_norms(system).to(memory_format=torch.contiguous_format)
            dynamic_shapes = {"images": left_open, "sizes_hw": {0: left_open[0]}}
            program = torch.export.export(module, (), kwargs=inputs, dynamic_shapes=dynamic_shapes, strict=False)
            _check_open(program, left_open)
            spec = program.call_spec.out_spec
            place = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
            return onnx_program(
                program,
                (),
                input_names=list(inputs),
                output_names=sorted(place, key=place.__getitem__),
                metadata=msgspec.json.encode(facts).decode(),
            )
        except ExportError:
            raise
        except Exception as error:  # the exporter's errors have no common base
            raise ExportError(
                f"{predictor.name} cannot be exported: {first_line_of(error)} (otus export --help names the kinds of models "
                "that can)"
            ) from error


def _check_open(program: Any, left_open: Mapping[int, Any]) -> None:
    traced = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    fixed = [axis for axis in left_open if isinstance(traced.meta["val"].shape[axis], int)]
    if fixed:
        named = " and ".join({0: "number", 2: "height", 3: "width"}[axis] for axis in fixed)
        raise ExportError(f"this model cannot be exported: the {named} of the images would be fixed in the program")


def _as_openvino(onnx_file: Path, file: Path) -> None:
    openvino = installed("openvino")
    model = openvino.Core().read_model(str(onnx_file))
    stored = installed("onnx").load(str(onnx_file), load_external_data=False).metadata_props
    model.set_rt_info(next(entry.value for entry in stored if entry.key == METADATA), [METADATA])
    openvino.save_model(model, str(file), compress_to_fp16=False)
    onnx_file.unlink()


def _size(file: Path) -> int:
    return sum(part.stat().st_size for part in (file, file.with_suffix(".bin")) if part.is_file())
