"""The image embedding of a promptable model: a feature map with hashes of the image and of the model's weights.

Shape shorthand: C x h x w the feature map.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from otus._files import staged_file
from otus.errors import DataError, UsageError

_KEY = "otus_embedding"
VERSION = 1


class _Metadata(msgspec.Struct):
    """What the file of an embedding stores beside its features."""

    version: int
    size_hw: tuple[int, int]
    image: str
    model: str


@dataclass(frozen=True, eq=False)
class Embedding:
    """The feature map of an image. It is immutable; its array is read-only.

    Parameters
    ----------
    features
        (C, h, w) feature map.
    size_hw
        Height and width of the image, in pixels.
    image, model
        SHA-256 of the image's pixels and of the model's weights.
    """

    features: Float32[np.ndarray, "c h w"]
    size_hw: tuple[int, int]
    image: str
    model: str
    # Cache of what a model computes from the feature map for all prompts; not saved.
    _derived: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        features = np.array(self.features, dtype=np.float32, order="C")  # safetensors ignores strides
        features.flags.writeable = False
        object.__setattr__(self, "features", features)

    def save(self, path: str | Path) -> None:
        """Write the embedding to a safetensors file, atomically.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        metadata = _Metadata(VERSION, self.size_hw, self.image, self.model)
        with staged_file(path) as stage:
            stage.write_bytes(
                save({"features": self.features}, metadata={_KEY: msgspec.json.encode(metadata).decode()})
            )

    @classmethod
    def load(cls, path: str | Path) -> "Embedding":
        """Read an embedding that :meth:`save` wrote.

        Raises
        ------
        DataError
            If the file is missing, damaged or not an embedding.
        """
        remedy = "embed the image again"
        try:
            with safe_open(str(path), framework="np") as file:
                file_metadata = file.metadata() or {}
                features = file.get_tensor("features") if _KEY in file_metadata else None
        except (OSError, SafetensorError) as error:
            raise DataError(f"is not a complete safetensors file: {error}", file=path, remedy=remedy) from None
        if features is None:
            raise DataError("is not an embedding of an image", file=path, remedy=remedy)
        try:
            metadata = msgspec.json.decode(file_metadata[_KEY], type=_Metadata)
        except msgspec.MsgspecError as error:
            raise DataError(f"its description is damaged: {error}", file=path, remedy=remedy) from None
        if metadata.version != VERSION:
            got = metadata.version
            raise DataError(f"expected an embedding of version {VERSION}, got {got}", file=path, remedy=remedy)
        return cls(features, metadata.size_hw, metadata.image, metadata.model)

    def check_image(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Raise UsageError unless the embedding is of this image."""
        if self.image != hash_image(image):
            raise UsageError("embedding: it is of another image; embed this image")


def hash_image(image: np.ndarray) -> str:
    """Return the SHA-256 of an image's size and pixels."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
