"""Load promptable methods by name: interactive methods without weights, and promptable models of the zoo."""

from pathlib import Path
from typing import Any

import torch

from otus.errors import UsageError, did_you_mean
from otus.inference.devices import choose_device, choose_precision
from otus.inference.loading import load
from otus.inference.predictor import Predictor
from otus.inference.runtimes import NATIVE_RUNTIMES
from otus.interactive.methods import METHODS, make_method
from otus.parts.fast.fusion import fused_for_inference
from otus.parts.tasks import PROMPTABLE
from otus.promptable.method import SamMethod
from otus.promptable.text import load_clip
from otus.promptable.zoom_in import ZoomIn
from otus.structures import PromptableMethod
from otus.zoo.models import MODELS
from otus.zoo.weights import weights_file


def promptable_names() -> list[str]:
    """Return the names that :func:`load_method` accepts, besides files of weights."""
    return [*METHODS, *(name for name, entry in MODELS.items() if entry.task is PROMPTABLE)]


def load_method(
    name_or_file: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | int | torch.device = "auto",
    precision: str = "exact",
    runtime: str = "torch",
    multimask: bool | None = None,
    text_encoder: str | Path | None = None,
    zoom_in: bool = False,
) -> PromptableMethod[Any]:
    """Load a promptable method: ``graph-cut``, ``grabcut``, a promptable model of the zoo, or a file of its weights.

    Parameters
    ----------
    name_or_file, weights, device, precision
        See :func:`otus.load`; ``bfloat16`` applies to the image encoder only. A file may also be the encoder of an exported
        model (:mod:`otus.inference.promptable_export`).
    runtime
        Library that runs the image encoder, see :func:`otus.load`.
    multimask
        See :class:`~otus.promptable.method.SamMethod`.
    text_encoder
        The CLIP that the weights were trained with, see :func:`~otus.promptable.text.load_clip` (default: no text).
    zoom_in
        Predict small objects in the enlarged windows around them: :class:`~otus.promptable.zoom_in.ZoomIn`.

    Raises
    ------
    UsageError
        If there is no such method, the model is not promptable, or a text encoder is given and the weights were not trained
        with text.
    MissingExtraError
        If a text encoder is given and transformers is not installed.
    CheckpointError, FetchError
        See :func:`otus.load`.
    """
    name = str(name_or_file)
    if name in METHODS:
        if weights is not None:
            raise UsageError(f"weights: {name} has no weights; leave out {weights}")
        if text_encoder is not None:
            raise UsageError(f"text_encoder: {name} takes no text; leave out {text_encoder}")
        if runtime != "torch":
            raise UsageError(f"runtime: {name} has no network; leave out {runtime}")
        if zoom_in:
            raise UsageError(f"zoom_in: {name} segments at full resolution anyway; leave it out")
        return make_method(name)
    _check_name(name_or_file, promptable_names())
    method = load_sam(
        name_or_file,
        weights=weights,
        device=device,
        precision=precision,
        runtime=runtime,
        multimask=multimask,
        text_encoder=text_encoder,
    )
    return ZoomIn(method) if zoom_in else method


def load_sam(
    name_or_file: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | int | torch.device = "auto",
    precision: str = "exact",
    runtime: str = "torch",
    multimask: bool | None = None,
    text_encoder: str | Path | None = None,
) -> SamMethod:
    """Load a promptable model, not a method without weights; parameters and errors are those of :func:`load_method`."""
    name = str(name_or_file)
    _check_name(name_or_file, [name for name in promptable_names() if name not in METHODS])
    if Path(name).suffix in NATIVE_RUNTIMES:
        from otus.inference.promptable_export import load_exported_sam  # rarely needed, slow to import

        unsupported = {
            "weights": weights is not None,
            "text_encoder": text_encoder is not None,
            "device": str(device) not in ("auto", "cpu"),
            "precision": precision == "bfloat16",
        }
        for option, is_given in unsupported.items():
            if is_given:
                raise UsageError(f"{option}: {name} is an exported file, which has its own; leave the {option} out")
        return load_exported_sam(
            Path(name_or_file), runtime=None if runtime in ("torch", "auto") else runtime, multimask=multimask
        )
    chosen = choose_precision(precision, choose_device(device))
    if chosen == "bfloat16" and runtime != "torch" and precision != "auto":
        raise UsageError(f"precision: {runtime} computes in float32; leave bfloat16 out")
    predictor = load(name_or_file, weights=weights, device=device)
    if predictor.task is not PROMPTABLE:
        raise UsageError(f"{name}: expected a promptable model, got one of the task {predictor.task.name}")
    running = predictor
    if runtime != "torch":
        running = Predictor(
            predictor.system, preprocess=predictor.preprocess, name=predictor.name, device=device, runtime=runtime
        )
    in_torch = running.runtime == "torch"
    method = SamMethod(
        predictor.system,
        preprocess=predictor.preprocess,
        name=predictor.name,
        multimask=multimask,
        bfloat16=chosen == "bfloat16" and in_torch,
        text_encoder=None if text_encoder is None else load_clip(text_encoder, preprocess=predictor.preprocess),
    )
    if chosen == "float32" or not in_torch:
        _ = method.model_hash  # of the weights before they are fused: embeddings of all runtimes are of one model
    method.sam = running.system
    if chosen == "float32" and in_torch:
        method.sam.image_encoder = fused_for_inference(method.sam.image_encoder)
    return method


def _check_name(name_or_file: str | Path, names: list[str]) -> None:
    """Raise UsageError unless it is one of the names or may be a file of weights."""
    name = str(name_or_file)
    may_be_file = name not in MODELS and (weights_file(name_or_file) is not None or "." in name)
    if name not in names and not may_be_file:
        raise UsageError(
            f"method: expected {', '.join(names)} or a file of weights, got {name!r}{did_you_mean(name, names)}"
        )
