"""Weights of whatever origin, as a model wants them: ours, torchvision's, DETR's; packaged, in a file, or fetched."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError, UsageError, did_you_mean
from otus.parts.preprocess import Preprocess
from otus.structures import Categories
from otus.zoo.checkpoint import below_prefix, checkpoint_part, load_checkpoint, prefixes_of, read_foreign
from otus.zoo.coco import COCO
from otus.zoo.detr_checkpoints import MARKS as DETR_MARKS
from otus.zoo.detr_checkpoints import DetrCheckpoint, is_detr, read_detr
from otus.zoo.hub import fetch
from otus.zoo.models import MODELS, model_entry
from otus.zoo.torchvision_checkpoints import MARKS as TORCHVISION_MARKS
from otus.zoo.torchvision_checkpoints import (
    TorchvisionCheckpoint,
    is_torchvision_detector,
    read_torchvision_detector,
)
from otus.zoo.torchvision_dense_checkpoints import MARKS as DENSE_MARKS
from otus.zoo.torchvision_dense_checkpoints import is_torchvision_dense_detector, read_torchvision_dense_detector
from otus.zoo.torchvision_segmentation_checkpoints import MARKS as SEGMENTER_MARKS
from otus.zoo.torchvision_segmentation_checkpoints import is_torchvision_segmenter, read_torchvision_segmenter
from otus.zoo.voc import VOC_WITH_BACKGROUND

_FOREIGN = (is_detr, is_torchvision_detector, is_torchvision_dense_detector, is_torchvision_segmenter)
_FURTHER_HEADS = ("mask_head.", "keypoint_head.")
_LAST_BIASES = ("mask_head.mask_fcn_logits.bias", "keypoint_head.kps_score_lowres.bias")


@dataclass(frozen=True)
class FoundWeights:
    """Tensors, and what is known of the model that they belong to.

    Parameters
    ----------
    source
        The file that they were read from.
    state
        Tensors by our names.
    builder
        The zoo's name of the model; None where the file does not say.
    arguments
        The builder's arguments that the tensors need.
    categories, preprocess
        What the labels mean, how images are prepared; None where the file does not say.
    score_thresholds
        By the category's name, where some were chosen (``otus evaluate --choose-thresholds``).
    training
        How they were trained, where the file says it (:class:`~otus.zoo.checkpoint.CheckpointHeader`).
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
    """Where the weights of a model lie that came with the package; None where none did."""
    path = Path(__file__).parent / "packaged" / f"{model}.safetensors"
    return path if path.is_file() else None


def packaged_names() -> list[str]:
    """The models whose weights came with the package."""
    return [name for name in MODELS if packaged_file(name)]


def weights_file(source: str | Path) -> Path | None:
    """The file of weights at a path: the path itself, or of the folder of a training run its best weights, else its last;
    None where there is no such file or folder.

    Raises
    ------
    CheckpointError
        If it is a folder without weights.
    """
    path = Path(source)
    if not path.is_dir():
        return path if path.is_file() else None
    kept = [path / "weights" / f"{name}.safetensors" for name in ("best", "last")]
    found = next((file for file in kept if file.is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: expected the folder of a training run, there is no {kept[0].relative_to(path)}")
    return found


def read_weights(weights: str | Path | None, *, model: str | None = None) -> FoundWeights:
    """Weights by name or from a file.

    Parameters
    ----------
    weights
        A file, the folder of a training run, ``packaged``, or a name of published weights of ``model``; None for the best
        there is of ``model``.
    model
        The zoo's name of the model that they are for.

    Raises
    ------
    UsageError
        If it is neither a file nor a name, or the model has no trained weights; the message lists the names there are.
    CheckpointError, FetchError
        If the file is damaged or of another model, or cannot be fetched.
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
                f"weights; trained and in the package: {', '.join(packaged_names()) or 'none yet'}"
            )
        weights = names[0]
    if str(weights) not in names or entry is None:
        of_model = f", and weights of {model} are: {', '.join(names) or 'none'}" if model else ""
        raise UsageError(
            f"weights {str(weights)!r}: there is no such file{of_model}{did_you_mean(str(weights), names)}"
        )
    if weights == "packaged" and packaged is not None:
        return read_weights_file(packaged, model=model)
    published = entry.weights[str(weights)]
    found = read_weights_file(fetch(published.url, sha256=published.sha256, packaged=packaged_names()), model=model)
    return replace(found, categories=published.categories)


def read_weights_file(path: Path, *, model: str | None = None) -> FoundWeights:
    """Weights of one file: a checkpoint of Otus, a torchvision detector's, or a DETR's.

    A mask or keypoint head that a run of ours trained without a single mask or keypoint is left out.

    Raises
    ------
    CheckpointError
        If it is damaged, none of them, or says that it belongs to another model.
    """
    if _is_ours(path):
        state, header = load_checkpoint(path)
        if model is not None and header.builder not in (model, None):
            raise CheckpointError(f"{path}: these are weights of {header.builder}, expected weights of {model}")
        found = FoundWeights(
            source=path,
            state=checkpoint_part(state),
            builder=header.builder,
            arguments=header.arguments,
            categories=header.categories,
            preprocess=None if header.preprocess is None else Preprocess.from_dict(header.preprocess),
            score_thresholds=header.extra.get("score_thresholds", {}).get("thresholds", {}),
            training=header.training,
        )
        return without_head(found, MODELS[str(found.builder)].boxes_only) if _untrained_head(found) else found
    foreign = _unwrapped(read_foreign(path))
    read: DetrCheckpoint | TorchvisionCheckpoint
    if is_detr(foreign):
        read = read_detr(foreign)
    elif is_torchvision_detector(foreign):
        read = read_torchvision_detector(foreign, sha256=_sha256(path))
    elif is_torchvision_dense_detector(foreign):
        read = read_torchvision_dense_detector(foreign, sha256=_sha256(path))
    elif is_torchvision_segmenter(foreign):
        segmenter = read_torchvision_segmenter(foreign)
        labels = VOC_WITH_BACKGROUND if segmenter.num_categories == len(VOC_WITH_BACKGROUND) else None
        return FoundWeights(path, segmenter.state, model, segmenter.arguments, labels)
    else:
        return FoundWeights(path, foreign, builder=model)
    published = [] if model is None else [weights.categories for weights in model_entry(model).weights.values()]
    slots = read.arguments["class_indices"]
    known = next((categories for categories in (*published, COCO) if list(categories.ids) == slots), None)
    return FoundWeights(path, read.state, model, read.arguments, known)


def without_head(found: FoundWeights, model: str | None) -> FoundWeights:
    """Weights of a model whose ``boxes_only`` is ``model`` as weights of that one: without mask or keypoint head."""
    if model is None or found.builder not in MODELS or MODELS[found.builder].boxes_only != model:
        return found
    state = {name: tensor for name, tensor in found.state.items() if not name.startswith(_FURTHER_HEADS)}
    return replace(found, builder=model, state=state)


def _untrained_head(found: FoundWeights) -> bool:
    """Whether a training run left a mask or keypoint head that it never had a label for.

    The bias of the head's last layer starts from 0, weight decay leaves it alone, and the first mask or keypoint moves it.
    """
    last = [found.state[name] for name in _LAST_BIASES if name in found.state]
    trained = found.builder in MODELS and bool(found.training.get("steps"))
    return trained and bool(last) and not any(bias.any() for bias in last)


def _unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state below the prefix that makes it one of those that are read here; as it is where none does."""
    for prefix in ("", *prefixes_of(state, {*DETR_MARKS, *TORCHVISION_MARKS, *DENSE_MARKS, *SEGMENTER_MARKS})):
        inner = below_prefix(state, prefix)
        if any(is_one(inner) for is_one in _FOREIGN):
            return inner
    return state


def _is_ours(path: Path) -> bool:
    """By the header that safetensors has at its start."""
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] != b"{":
            return False
        return b'"otus"' in file.read(min(int.from_bytes(start[:8], "little"), 1 << 27))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
