"""Export a promptable model as two programs, image encoder and mask decoder, and predict with the files.

Shape shorthand: S x S the padded image, C x h x w its feature map, B prompts, P points each, m x m the logits, M + 1 masks
of a prompt.

The files are ``NAME.encoder.onnx`` and ``NAME.decoder.onnx`` (or ``….xml``). The decoder's inputs and outputs have the names
and meanings of those of the decoder that segment-anything exports: boxes are given as two points of labels 2 and 3, and a
prompt without a box has a padding point (0, 0) of label -1. There is no ``orig_im_size`` and no ``masks``: the caller
resizes ``low_res_masks`` to the padded image, crops the padding and resizes the rest to the image
(:func:`~otus.promptable.mask_upscaling.upscale`).
"""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from otus.data.scenes.generator import Scenes
from otus.errors import CheckpointError, ExportError, UsageError
from otus.inference.export import CHECKED_HW, SUFFIXES, Export, as_openvino, checked_difference
from otus.inference.predictor import Predictor
from otus.inference.runtimes import Session, onnx_program, open_session, root_message
from otus.parts.backbones.norms import fuse_frozen_norms
from otus.parts.preprocess import Preprocess
from otus.promptable.embedding import hash_weights
from otus.promptable.mask_decoder import ProjectedImage
from otus.promptable.method import SamMethod
from otus.promptable.prompt_encoder import PromptBatch
from otus.promptable.sam import Sam, prepare_image

ROLES = ("encoder", "decoder")
"""The two files of a model, by the part of their names before the suffix."""
_INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
_OUTPUTS = ("low_res_masks", "iou_predictions")


@dataclass(frozen=True)
class ExportedSamPart:
    """The description of a model that is stored in its two files.

    Parameters
    ----------
    name
        Name of the model.
    role
        ``encoder`` or ``decoder``.
    weights
        SHA-256 of the model's weights, equal in the two files.
    image_size, mask_size
        Side S of the padded image and side m of the logits.
    preprocess
        Preprocessing of the images; only mean and std are used.
    """

    name: str
    role: str
    weights: str
    image_size: int
    mask_size: int
    preprocess: dict[str, Any]


class PromptDecoder(nn.Module):
    """The prompt encoder and mask decoder of a SAM as one program; points, boxes and masks in one batch."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(
        self,
        image_embeddings: Float[Tensor, "1 c h w"],
        point_coords: Float[Tensor, "b p 2"],
        point_labels: Float[Tensor, "b p"],
        mask_input: Float[Tensor, "b 1 m m"],
        has_mask_input: Float[Tensor, "1"],
    ) -> tuple[Float[Tensor, "b masks m m"], Float[Tensor, "b masks"]]:
        """Return the logits and predicted IoUs of all masks; the first mask is the one for unambiguous prompts.

        Parameters
        ----------
        image_embeddings
            Output of the encoder for one image.
        point_coords, point_labels
            Points in pixels of the padded image, and labels: 0 background, 1 object, 2 and 3 corners of a box, -1 padding.
        mask_input, has_mask_input
            Logits of a previous prediction, used if ``has_mask_input`` is 1.
        """
        tokens = self.prompt_encoder.embed_points(point_coords, point_labels.long(), image_embeddings[0])
        no_mask = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        dense = torch.where(has_mask_input > 0.5, self.prompt_encoder.mask_downscaling(mask_input), no_mask)
        encodings = self.prompt_encoder.map_encodings()
        return self.mask_decoder(self.mask_decoder.project_image(image_embeddings[0], dense, encodings), tokens)


class ExportedSam(nn.Module):
    """The methods of :class:`~otus.promptable.sam.Sam` that predict, run by the two exported files.

    Parameters
    ----------
    encoder, decoder
        Sessions that run the files.
    description
        Description of the model, from the files.
    """

    device = torch.device("cpu")
    chunk_size = 64

    def __init__(self, encoder: Session, decoder: Session, description: ExportedSamPart) -> None:
        super().__init__()
        self._encoder, self._decoder = encoder, decoder
        self.image_size, self.mask_size = description.image_size, description.mask_size
        self.prompt_encoder = SimpleNamespace(trained_with_text=False)
        self.register_buffer("weights", torch.tensor(list(bytes.fromhex(description.weights))))  # identifies the model

    def image_encoder(self, images: Float[Tensor, "1 3 s s"]) -> Float[Tensor, "1 c h w"]:
        """Return the feature map of a padded image."""
        return torch.from_numpy(self._encoder.run(images=images.numpy())["image_embeddings"])

    def project_image(self, features: Float[Tensor, "c h w"]) -> None:
        """Return None: the decoder's file computes it."""

    def decode(
        self, features: Float[Tensor, "c h w"], prompts: PromptBatch, *, image: ProjectedImage | None = None
    ) -> tuple[Float[Tensor, "b masks m m"], Float[Tensor, "b masks"]]:
        """Return logits and predicted IoUs of the M + 1 masks of each prompt, see :meth:`Sam.decode`."""
        outputs: list[dict[str, np.ndarray]] = []
        for chunk in prompts.split(self.chunk_size):
            points, labels = chunk.as_points()
            masks = chunk.masks
            if masks is None:
                masks = torch.zeros(len(points), 1, self.mask_size, self.mask_size)
            values = (
                features[None],
                points.float(),
                labels.float(),
                masks,
                torch.tensor([float(chunk.masks is not None)]),
            )
            outputs.append(self._decoder.run(**{name: x.numpy() for name, x in zip(_INPUTS, values, strict=True)}))
        logits, ious = (torch.from_numpy(np.concatenate([output[name] for output in outputs])) for name in _OUTPUTS)
        return logits, ious

    def decode_above(
        self,
        features: Float[Tensor, "c h w"],
        prompts: PromptBatch,
        iou_threshold: float,
        *,
        image: ProjectedImage | None = None,
    ) -> tuple[Float[Tensor, "n m m"], Float[Tensor, "n"], Int[Tensor, "n"]]:
        """Return the candidates whose predicted IoU exceeds a threshold, see :meth:`Sam.decode_above`."""
        logits, ious = (output[:, 1:] for output in self.decode(features, prompts))
        keep = ious > (iou_threshold if iou_threshold > 0 else -torch.inf)
        return logits[keep], ious[keep], keep.nonzero()[:, 0]

    def decoder_inputs(self, *_: Any) -> Any:
        """Raise UsageError: an exported file has no access to intermediate results."""
        raise UsageError("method: an exported file does not record attention; use the model it was exported from")


def export_promptable(predictor: Predictor, file: Path, *, format: str, images: Sequence[np.ndarray] = ()) -> Export:
    """Export a promptable model, see :func:`~otus.inference.export.export_model`."""
    if cast(Sam, predictor.system).prompt_encoder.trained_with_text:
        raise ExportError(
            f"{predictor.name} cannot be exported: the decoder's file takes no text; use the model itself"
        )
    suffix, stem = SUFFIXES[format], file.with_suffix("").name
    sam = cast(Sam, fuse_frozen_norms(predictor.system).to(memory_format=torch.contiguous_format)).eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        for role in ROLES:
            staged = Path(folder) / f"{stem}.{role}.onnx"
            _write_program(predictor, sam, role, staged)
            if format == "openvino":
                as_openvino(staged, staged.with_suffix(suffix))
        exported = load_exported_sam(Path(folder) / f"{stem}.encoder{suffix}").sam
        checked = images or [Scenes(1, size_hw=size_hw, seed=i).scene(0).image for i, size_hw in enumerate(CHECKED_HW)]
        max_differences = _compare(predictor, cast(ExportedSam, exported), checked)
        del exported  # Windows does not rename an open file
        for written in Path(folder).iterdir():
            written.replace(file.parent / written.name)
    return Export(tuple(file.parent / f"{stem}.{role}{suffix}" for role in ROLES), max_differences, None)


def _write_program(predictor: Predictor, sam: Sam, role: str, file: Path) -> None:
    """Trace one part of the model and write it as ONNX."""
    size, side = sam.image_size, sam.mask_size
    description = ExportedSamPart(
        predictor.name, role, hash_weights(predictor.system), size, side, predictor.preprocess.to_dict()
    )
    batch, points = torch.export.Dim.AUTO, torch.export.Dim.AUTO
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        try:
            if role == "encoder":
                part, inputs = cast(nn.Module, sam.image_encoder), {"images": torch.zeros(1, 3, size, size)}
                dynamic: dict[str, dict[int, Any]] = {"images": {}}
                outputs = ["image_embeddings"]
            else:
                part = PromptDecoder(sam)
                features = sam.image_encoder(torch.zeros(1, 3, size, size))
                values = (features, torch.ones(2, 3, 2), torch.ones(2, 3), torch.zeros(2, 1, side, side), torch.ones(1))
                inputs = dict(zip(_INPUTS, values, strict=True))
                dynamic = {name: {} for name in _INPUTS}
                dynamic |= {"point_coords": {0: batch, 1: points}, "point_labels": {0: batch, 1: points}}
                dynamic["mask_input"] = {0: batch}
                outputs = list(_OUTPUTS)
            program = torch.export.export(
                part, tuple(inputs.values()), dynamic_shapes=tuple(dynamic.values()), strict=False
            )
            exported = onnx_program(
                program,
                (),
                input_names=list(inputs),
                output_names=outputs,
                metadata=msgspec.json.encode(description).decode(),
            )
        except Exception as error:  # the exporter's errors have no common base
            raise ExportError(f"{predictor.name}: its {role} cannot be exported: {root_message(error)}") from error
    exported.save(file)


def _compare(predictor: Predictor, exported: ExportedSam, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the largest differences of feature maps, logits and predicted IoUs from the model's, over several prompts.

    Raises
    ------
    ExportError
        If they differ by more than the tolerance.
    """
    sam = cast(Sam, predictor.system)
    size, side = sam.image_size, sam.mask_size
    random = torch.Generator().manual_seed(0)
    points, labels = size * torch.rand(5, 2, 2, generator=random), torch.tensor([[1, 0]] * 5)
    boxes = torch.cat([points.amin(dim=1), points.amax(dim=1) + 1], dim=1)
    masks = 8 * torch.randn(5, 1, side, side, generator=random)
    prompts = [
        PromptBatch(points[:1, :1], labels[:1, :1]),
        PromptBatch(points, labels),
        PromptBatch(boxes=boxes[:3]),
        PromptBatch(points[:2], labels[:2], boxes[:2], masks[:2]),
        PromptBatch(masks=masks[:1]),
    ]
    max_differences: dict[str, float] = {}
    with torch.inference_mode():
        for image in images:
            prepared = prepare_image(image, size, preprocess=predictor.preprocess)
            features = sam.image_encoder(prepared)
            compared = [("image_embeddings", features, exported.image_encoder(prepared))]
            for batch in prompts:
                expected, found = sam.decode(features[0], batch), exported.decode(features[0], batch)
                compared += zip(_OUTPUTS, expected, found, strict=True)
            for name, reference, output in compared:
                difference = checked_difference(name, reference.numpy(), output.numpy())
                max_differences[name] = max(max_differences.get(name, 0.0), difference)
    return max_differences


def load_exported_sam(file: Path, *, runtime: str | None = None, multimask: bool | None = None) -> SamMethod:
    """Return the promptable method of two exported files.

    Parameters
    ----------
    file
        The encoder's file; the decoder's is beside it. The latter may be given too.
    runtime
        See :func:`~otus.inference.runtimes.open_session`.
    multimask
        See :class:`~otus.promptable.method.SamMethod`.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, was not exported by Otus, or the two are of different models.
    UsageError, MissingExtraError
        See :func:`~otus.inference.runtimes.open_session`.
    """
    stem = file.with_suffix("").with_suffix("")
    if file.is_file() and file.with_suffix("").suffix not in (f".{role}" for role in ROLES):
        raise CheckpointError(
            f"{file}: is not a promptable model, whose files are called NAME.encoder{file.suffix} and "
            f"NAME.decoder{file.suffix}; use it with otus predict, or export a promptable model"
        )
    sessions, descriptions = [], []
    for role in ROLES:
        part = stem.with_name(f"{stem.name}.{role}{file.suffix}")
        if not part.is_file():
            raise CheckpointError(
                f"{part}: there is no such file, the {role} of {file}; export the model with otus export"
            )
        session = open_session(part, runtime=runtime)
        try:
            description = msgspec.json.decode(session.metadata or "", type=ExportedSamPart)
        except msgspec.MsgspecError:
            raise CheckpointError(
                f"{part}: is not the {role} of a promptable model exported by Otus; export the model with otus export"
            ) from None
        if description.role != role:
            raise CheckpointError(
                f"{part}: is the {description.role} of a model, expected the {role}; rename the files"
            )
        sessions.append(session)
        descriptions.append(description)
    if replace(descriptions[1], role=ROLES[0]) != descriptions[0]:
        raise CheckpointError(f"{file}: encoder and decoder are of different models; export the model again")
    encoder, decoder = sessions
    sam = ExportedSam(encoder, decoder, descriptions[0]).eval()
    preprocess = Preprocess.from_dict(descriptions[0].preprocess)
    return SamMethod(cast(Sam, sam), preprocess=preprocess, name=descriptions[0].name, multimask=multimask)
