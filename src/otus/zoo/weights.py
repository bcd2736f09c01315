"""Load weights of Otus, torchvision, DETR or SAM, packaged, from a file or downloaded, under the parameter names of Otus."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError, UsageError, did_you_mean
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import INSTANCE, OBJECT
from otus.structures import Categories
from otus.zoo.checkpoint import checkpoint_part, find_prefixes, load_checkpoint, read_foreign, sub_state
from otus.zoo.coco import COCO, COCO_PANOPTIC
from otus.zoo.detr_checkpoints import SIGNATURE_KEYS as DETR_KEYS
from otus.zoo.detr_checkpoints import DetrCheckpoint, is_detr, read_detr
from otus.zoo.hub import fetch
from otus.zoo.models import MODELS, model_entry
from otus.zoo.sam_checkpoints import SIGNATURE_KEYS as SAM_KEYS
from otus.zoo.sam_checkpoints import is_sam, read_sam
from otus.zoo.torchvision_checkpoints import SIGNATURE_KEYS as TORCHVISION_KEYS
from otus.zoo.torchvision_checkpoints import (
    TorchvisionCheckpoint,
    is_torchvision_detector,
    read_torchvision_detector,
)
from otus.zoo.torchvision_dense_checkpoints import SIGNATURE_KEYS as DENSE_KEYS
from otus.zoo.torchvision_dense_checkpoints import is_torchvision_dense_detector, read_torchvision_dense_detector
from otus.zoo.torchvision_segmentation_checkpoints import SIGNATURE_KEYS as SEGMENTER_KEYS
from otus.zoo.torchvision_segmentation_checkpoints import is_torchvision_segmenter, read_torchvision_segmenter
from otus.zoo.voc import VOC_WITH_BACKGROUND

_FOREIGN_FORMATS = (is_detr, is_sam, is_torchvision_detector, is_torchvision_dense_detector, is_torchvision_segmenter)
_DROPPABLE_HEADS = ("mask_head.", "keypoint_head.")
_LAST_BIASES = ("mask_head.mask_fcn_logits.bias", "keypoint_head.kps_score_lowres.bias")


@dataclass(frozen=True)
class LoadedWeights:
    """Weights, and the description of the model that they belong to.

    Parameters
    ----------
    source
        The file that they were read from.
    state
        Tensors by their names in Otus.
    builder
        Name of the model in the zoo; None if unknown.
    arguments
        Keyword arguments of the builder that fit the tensors.
    categories, preprocess
        The category of each class index, and the preprocessing of images; None if unknown.
    score_thresholds
        Score threshold by category name, if chosen by ``otus evaluate --choose-thresholds``; else empty.
    training
        How the model was trained, as in :class:`~otus.zoo.checkpoint.CheckpointHeader`; empty if unknown.
    """

    source: Path
    state: Mapping[str, Tensor]
    builder: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    categories: Categories | None = None
    preprocess: Preprocess | None = None
    score_thresholds: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def packaged_file(model: str) -> Path | None:
    """Return the file of a model's weights in the package, or None if it has none."""
    path = Path(__file__).parent / "packaged" / f"{model}.safetensors"
    return path if path.is_file() else None


def packaged_names() -> list[str]:
    """Return the names of the models with packaged weights, instance models first; the first is ``otus.load``'s default."""
    return sorted(filter(packaged_file, MODELS), key=lambda name: MODELS[name].task is not INSTANCE)


def weights_file(source: str | Path) -> Path | None:
    """Return the weights file at a path, or None if the path does not exist.

    For the folder of a training run it is the file of its best weights, else of its last; for a file, the file itself.

    Raises
    ------
    CheckpointError
        If the path is a folder without weights.
    """
    path = Path(source)
    if not path.is_dir():
        return path if path.is_file() else None
    candidates = [path / "weights" / f"{name}.safetensors" for name in ("best", "last")]
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{path}: expected the folder of a training run, but there is no {candidates[0].relative_to(path)}"
        )
    return file


def read_weights(weights: str | Path | None, *, model: str | None = None) -> LoadedWeights:
    """Load weights by name or from a file.

    Parameters
    ----------
    weights
        A file, the folder of a training run, ``packaged``, or the name of published weights of ``model``; None for the
        best available weights of ``model``.
    model
        Name in the zoo of the model to load them into (default: read it from the file).

    Raises
    ------
    UsageError
        If ``weights`` is neither a file nor a known name, or the model has no trained weights; the message lists the
        names.
    CheckpointError, FetchError
        If the file is damaged or belongs to another model, or cannot be downloaded.
    """
    file = None if weights is None else weights_file(weights)
    if file is not None:
        return read_weights_file(file, model=model)
    entry = None if model is None else model_entry(model)
    packaged = None if model is None else packaged_file(model)
    names = [*(["packaged"] if packaged else []), *(entry.weights if entry else ())]
    if weights is None:
        if not names:
            raise UsageError(
                f"{model} has no trained weights: train it (otus train --model {model} --data …), or give a file as "
                f"weights; models with packaged weights: {', '.join(packaged_names()) or 'none yet'}"
            )
        weights = names[0]
    if str(weights) not in names or entry is None:
        available = f", and the weights of {model} are: {', '.join(names) or 'none'}" if model else ""
        raise UsageError(
            f"weights {str(weights)!r}: there is no such file{available}{did_you_mean(str(weights), names)}"
        )
    if weights == "packaged" and packaged is not None:
        return read_weights_file(packaged, model=model)
    published = entry.weights[str(weights)]
    loaded = read_weights_file(fetch(published.url, sha256=published.sha256, packaged=packaged_names()), model=model)
    return replace(loaded, categories=published.categories)


def read_weights_file(path: Path, *, model: str | None = None) -> LoadedWeights:
    """Load a weights file: a checkpoint of Otus, of a torchvision detector or segmentation model, of a DETR or a SAM.

    In checkpoints of Otus, a mask or keypoint head is dropped if the training data had no mask or keypoint.

    Raises
    ------
    CheckpointError
        If the file is damaged, not a file of weights, or states that it belongs to another model.
    """
    if _is_otus_checkpoint(path):
        state, header = load_checkpoint(path)
        if model is not None and header.builder not in (model, None):
            raise CheckpointError(f"{path}: these are weights of {header.builder}, expected weights of {model}")
        loaded = LoadedWeights(
            source=path,
            state=checkpoint_part(state),
            builder=header.builder,
            arguments=header.arguments,
            categories=header.categories,
            preprocess=None if header.preprocess is None else Preprocess.from_dict(header.preprocess),
            score_thresholds=header.extra.get("score_thresholds", {}).get("thresholds", {}),
            training=header.training,
        )
        return drop_head(loaded, MODELS[str(loaded.builder)].boxes_only) if _has_untrained_head(loaded) else loaded
    foreign = _remove_prefix(read_foreign(path))
    checkpoint: DetrCheckpoint | TorchvisionCheckpoint
    if is_sam(foreign):
        sam = read_sam(foreign)
        return LoadedWeights(path, sam.state, model or sam.builder, categories=OBJECT)
    if is_detr(foreign):
        checkpoint = read_detr(foreign)
    elif is_torchvision_detector(foreign):
        checkpoint = read_torchvision_detector(foreign, sha256=_sha256(path))
    elif is_torchvision_dense_detector(foreign):
        checkpoint = read_torchvision_dense_detector(foreign, sha256=_sha256(path))
    elif is_torchvision_segmenter(foreign):
        segmenter = read_torchvision_segmenter(foreign)
        categories = VOC_WITH_BACKGROUND if segmenter.num_categories == len(VOC_WITH_BACKGROUND) else None
        return LoadedWeights(path, segmenter.state, model, segmenter.arguments, categories)
    else:
        return LoadedWeights(path, foreign, builder=model)
    published = [] if model is None else [weights.categories for weights in model_entry(model).weights.values()]
    class_indices = checkpoint.arguments["class_indices"]
    known = next(
        (categories for categories in (*published, COCO, COCO_PANOPTIC) if list(categories.ids) == class_indices), None
    )
    return LoadedWeights(path, checkpoint.state, model, checkpoint.arguments, known)


def drop_head(weights: LoadedWeights, model: str | None) -> LoadedWeights:
    """Drop the mask or keypoint head if ``model`` is the ``boxes_only`` variant of the weights' model."""
    if model is None or weights.builder not in MODELS or MODELS[weights.builder].boxes_only != model:
        return weights
    state = {name: tensor for name, tensor in weights.state.items() if not name.startswith(_DROPPABLE_HEADS)}
    return replace(weights, builder=model, state=state)


def _has_untrained_head(weights: LoadedWeights) -> bool:
    """Return whether weights of a training run have a mask or keypoint head that never had a training target.

    The bias of the head's last layer is initialised to 0, has no weight decay, and changes with the first mask or
    keypoint.
    """
    biases = [weights.state[name] for name in _LAST_BIASES if name in weights.state]
    is_trained = weights.builder in MODELS and bool(weights.training.get("steps"))
    return is_trained and bool(biases) and not any(bias.any() for bias in biases)


def _remove_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the state of a supported foreign checkpoint without the prefix of its names; others unchanged."""
    for prefix in (
        "",
        *find_prefixes(state, {*DETR_KEYS, *SAM_KEYS, *TORCHVISION_KEYS, *DENSE_KEYS, *SEGMENTER_KEYS}),
    ):
        inner = sub_state(state, prefix)
        if any(is_format(inner) for is_format in _FOREIGN_FORMATS):
            return inner
    return state


def _is_otus_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of Otus, by its safetensors header."""
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] != b"{":
            return False
        return b'"otus"' in file.read(min(int.from_bytes(start[:8], "little"), 1 << 27))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
