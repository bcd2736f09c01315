"""What a promptable model knows of an image: its map, bound to the image and to the weights that made it.

Shape shorthand: C x h x w the map.
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


@dataclass(frozen=True, eq=False)
class Embedding:
    """A map of an image. It does not change, and its array cannot be written.

    Parameters
    ----------
    features
        (C, h, w).
    size_hw
        Of the image.
    image, model
        SHA-256 of the image's pixels and of the model's weights.
    """

    features: Float32[np.ndarray, "c h w"]
    size_hw: tuple[int, int]
    image: str
    model: str
    # What a model derives from the map for all prompts; not saved.
    _derived: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        features = np.array(self.features, dtype=np.float32, order="C")  # safetensors writes memory as it lies
        features.flags.writeable = False
        object.__setattr__(self, "features", features)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        about = {"version": VERSION, "size_hw": self.size_hw, "image": self.image, "model": self.model}
        with staged_file(path) as stage:
            stage.write_bytes(save({"features": self.features}, metadata={_KEY: msgspec.json.encode(about).decode()}))

    @classmethod
    def load(cls, path: str | Path) -> "Embedding":
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            If the file is missing, damaged or no embedding.
        """
        remedy = "embed the image again"
        try:
            with safe_open(str(path), framework="np") as file:
                metadata = file.metadata() or {}
                features = file.get_tensor("features") if _KEY in metadata else None
        except (OSError, SafetensorError) as error:
            raise DataError(f"is not a whole safetensors file: {error}", file=path, remedy=remedy) from None
        if features is None:
            raise DataError("is no embedding of an image", file=path, remedy=remedy)
        about = msgspec.json.decode(metadata[_KEY])
        if about.get("version") != VERSION:
            got = about.get("version")
            raise DataError(f"expected an embedding of version {VERSION}, got {got}", file=path, remedy=remedy)
        height, width = about["size_hw"]
        return cls(features, (height, width), about["image"], about["model"])

    def check_image(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """UsageError unless the embedding is of this image."""
        if self.image != hash_image(image):
            raise UsageError("embedding: it is of another image, embed this one")


def hash_image(image: UInt8[np.ndarray, "h w 3"]) -> str:
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
