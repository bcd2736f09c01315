"""Export models to ONNX and OpenVINO files, and check the files against the model.

The exported program is the system's ``forward``: its inputs are a batch of preprocessed images of one size, its outputs are
detections, after NMS, or logits, by name. ``torch.export`` traces it with dynamic sizes. The file contains its description
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
from otus.inference.runtimes import (
    METADATA,
    Session,
    onnx_program,
    open_session,
    openvino_core,
    require_package,
    root_message,
)
from otus.parts.backbones.norms import fuse_frozen_norms
from otus.parts.tasks import PROMPTABLE

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
"""File suffix by format."""
TOLERANCE = 1e-4
"""Maximum difference of an output from the model's, relative to its largest value or 1, whichever is larger."""
MASK_TOLERANCE = 1e-3
"""The same for masks, which are cropped at boxes that already differ slightly."""
_TRACED_HW = (300, 340)
CHECKED_HW = ((240, 320), (320, 240))


@dataclass(frozen=True)
class Export:
    """A file that was written and checked.

    Parameters
    ----------
    files
        The file, or encoder and decoder of a promptable model; OpenVINO's weights are in ``….bin`` beside each.
    max_differences
        Largest difference of each output from the model's.
    num_detections
        Number of detections that were compared; None for models that do not detect objects.
    """

    files: tuple[Path, ...]
    max_differences: Mapping[str, float]
    num_detections: int | None

    @property
    def file(self) -> Path:
        """The first file."""
        return self.files[0]

    def __str__(self) -> str:
        over = "" if self.num_detections is None else f" over {self.num_detections} detections"
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.max_differences.items())
        sizes = ", ".join(f"{file}: {_size(file) / 1e6:.1f} MB" for file in self.files)
        return f"{sizes}; largest difference from the model{over}: {differences}"


def export_model(
    predictor: Predictor, file: str | Path, *, format: str = "onnx", images: Sequence[np.ndarray] = ()
) -> Export:
    """Export a model to a file that runs without Otus, and check that it predicts the same.

    Parameters
    ----------
    predictor
        The model, in precision ``exact``.
    file
        File to write; of a promptable model, ``….encoder.onnx`` and ``….decoder.onnx``
        (:mod:`~otus.inference.promptable_export`). It is not written if the check fails.
    format
        ``onnx``, or ``openvino``: an ``….xml`` and its ``….bin``.
    images
        uint8 (H, W, 3) RGB images for the check (default: synthetic scenes).

    Raises
    ------
    ExportError
        If the model cannot be exported, or the file's predictions differ.
    UsageError
        If there is no such format, or the predictor is not on the CPU, in precision ``exact``.
    MissingExtraError
        If a package of the extra ``export`` is not installed.
    """
    if format not in SUFFIXES:
        raise UsageError(f"format: expected one of {', '.join(SUFFIXES)}, got {format!r}")
    for package in ("onnx", "onnxscript", "onnxruntime" if format == "onnx" else "openvino"):
        require_package(package)
    state = str(predictor.device), predictor.precision, predictor.runtime
    if state != ("cpu", "exact", "torch"):
        raise UsageError(
            f"predictor: expected one on the CPU, in precision exact, run by torch, got {', '.join(state)}; load the model "
            'with device="cpu"'
        )
    file = Path(file)
    if predictor.task is PROMPTABLE:
        from otus.inference.promptable_export import export_promptable

        return export_promptable(predictor, file, format=format, images=images)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        staged = Path(folder) / file.with_suffix(SUFFIXES[format]).name
        program = _onnx_program(predictor)
        onnx_file = staged.with_suffix(".onnx")
        program.save(onnx_file)
        if format == "openvino":
            as_openvino(onnx_file, staged)
        session = open_session(staged)
        checked = images or [Scenes(1, size_hw=size_hw, seed=i).scene(0).image for i, size_hw in enumerate(CHECKED_HW)]
        max_differences, num_detections = compare_outputs(predictor, session, checked)
        del session  # Windows does not rename an open file
        for written in Path(folder).iterdir():
            written.replace(file.parent / written.name)
    return Export((file.with_suffix(SUFFIXES[format]),), max_differences, num_detections)


def compare_outputs(
    predictor: Predictor, session: Session, images: Sequence[np.ndarray]
) -> tuple[dict[str, float], int | None]:
    """Return the largest difference of each output of a session from the model's, and the number of detections compared.

    Raises
    ------
    ExportError
        If they differ by more than the tolerance.
    """
    max_differences: dict[str, float] = {}
    num_detections = None
    samples = [predictor.pipeline.prepare(Sample(image, "checked")) for image in images]
    for batch_samples in (samples[:1], samples if len(samples) > 1 else 2 * samples):
        record = predictor.system.stages(batch_samples, postprocess=predictor.system.postprocess)
        expected = {name: x.numpy(force=True) for name, x in predictor.system.tensors(record).items()}
        batch = record.batch
        try:
            outputs = session.run(
                images=batch.images.numpy(force=True), sizes_hw=np.array(batch.sizes_hw, dtype=np.int64)
            )
        except Exception as error:  # each runtime has its own errors
            raise ExportError(
                f"export: the exported file fails on a batch of {len(batch_samples)}, so this model cannot be exported: "
                f"{root_message(error)}; nothing was written"
            ) from error
        if "boxes" in expected:
            if len(expected["boxes"]) != len(outputs["boxes"]):
                raise ExportError(
                    f"export: the model detects {len(expected['boxes'])} objects and the exported file "
                    f"{len(outputs['boxes'])} on the same images; nothing was written"
                )
            num_detections = (num_detections or 0) + len(outputs["boxes"])
            order = _match_detections(expected, outputs)
            outputs = {name: x[order] for name, x in outputs.items()}
        for name, reference in expected.items():
            tolerance = MASK_TOLERANCE if name == "masks" else TOLERANCE
            difference = checked_difference(name, reference, outputs[name], tolerance)
            if name not in ("image_index", "labels"):
                max_differences[name] = max(max_differences.get(name, 0.0), difference)
    return max_differences, num_detections


def checked_difference(name: str, reference: np.ndarray, output: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference of an output from the model's.

    Raises
    ------
    ExportError
        If it exceeds the tolerance, a fraction of the largest value or of 1, or is NaN.
    """
    difference = float(np.abs(output.astype(np.float64) - reference).max(initial=0))
    if not difference <= tolerance * max(1.0, float(np.abs(reference).max(initial=0))):
        raise ExportError(
            f"export: the {name} of the exported file differ from the model's by up to {difference:.2g}, expected at most "
            f"{tolerance:g} of the largest value; nothing was written"
        )
    return difference


def _match_detections(expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the output for each expected detection; those of nearly equal scores may come in another order."""
    cost = np.abs(expected["boxes"][:, None] - np.nan_to_num(outputs["boxes"], nan=-1e6)).max(axis=2, initial=0)
    for name in ("image_index", "labels"):
        cost = cost + 1e6 * (expected[name][:, None] != outputs[name])
    return linear_sum_assignment(cost)[1]


def _onnx_program(predictor: Predictor) -> Any:
    system = predictor.system
    if system.original_image_search is not None:
        raise ExportError(
            f"{predictor.name} cannot be exported: it needs proposals that are computed on the original image by a method "
            "that is not a network; export a model with a region proposal network, such as Faster R-CNN"
        )
    description = ExportedModel(
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
    dynamic_axes: dict[int, Any] = {0: torch.export.Dim.AUTO}
    if predictor.preprocess.fixed_hw is None:
        for axis, name in ((2, "rows"), (3, "columns")):
            dynamic_axes[axis] = divisor * torch.export.Dim(name) if divisor > 1 else torch.export.Dim.AUTO
    inputs = {"images": images, "sizes_hw": sizes_hw}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        try:
            module = fuse_frozen_norms(system).to(memory_format=torch.contiguous_format)
            dynamic_shapes = {"images": dynamic_axes, "sizes_hw": {0: dynamic_axes[0]}}
            program = torch.export.export(module, (), kwargs=inputs, dynamic_shapes=dynamic_shapes, strict=False)
            _check_dynamic(program, dynamic_axes)
            spec = program.call_spec.out_spec
            position = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)  # of each output, by name
            return onnx_program(
                program,
                (),
                input_names=list(inputs),
                output_names=sorted(position, key=position.__getitem__),
                metadata=msgspec.json.encode(description).decode(),
            )
        except ExportError:
            raise
        except Exception as error:  # the exporter's errors have no common base
            raise ExportError(
                f"{predictor.name} cannot be exported: {root_message(error)} (otus export --help names the kinds of models "
                "that can)"
            ) from error


def _check_dynamic(program: Any, dynamic_axes: Mapping[int, Any]) -> None:
    """Raise ExportError if tracing has fixed an axis of the images that should be dynamic."""
    images = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    fixed = [axis for axis in dynamic_axes if isinstance(images.meta["val"].shape[axis], int)]
    if fixed:
        names = " and ".join({0: "number", 2: "height", 3: "width"}[axis] for axis in fixed)
        raise ExportError(f"this model cannot be exported: the {names} of the images would be fixed in the program")


def as_openvino(onnx_file: Path, file: Path) -> None:
    """Convert an ONNX file to OpenVINO's format, and remove it."""
    openvino = require_package("openvino")
    model = openvino_core().read_model(str(onnx_file))
    stored = require_package("onnx").load(str(onnx_file), load_external_data=False).metadata_props
    model.set_rt_info(next(entry.value for entry in stored if entry.key == METADATA), [METADATA])
    openvino.save_model(model, str(file), compress_to_fp16=False)
    for part in onnx_file.parent.glob(f"{onnx_file.name}*"):  # weights of more than 2 GB are in a file of their own
        part.unlink()


def _size(file: Path) -> int:
    """Return the size of an exported model in bytes."""
    return sum(part.stat().st_size for part in (file, file.with_suffix(".bin")) if part.is_file())
