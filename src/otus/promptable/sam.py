"""SAM: an image encoder that runs once per image, a prompt encoder and a light mask decoder that run once per prompt.

Shape shorthand: B prompts, P points each, S x S the padded image, C x h x w its feature map, M + 1 masks, m x m their
logits.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643); MobileSAM: "Faster Segment Anything" (Zhang et
al., 2023, arXiv:2306.14289). Official code: github.com/facebookresearch/segment-anything (Apache-2.0).
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from otus.data.tensors import TensorSample
from otus.errors import ShapeError, UsageError
from otus.parts.backbones import Freezing, efficientnet_lite0_backbone
from otus.parts.batching import Batch
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem, Stages
from otus.parts.tasks import OBJECT, PROMPTABLE, Task
from otus.promptable.backbone_encoder import BackboneEncoder
from otus.promptable.image_encoder import ImageEncoder, ViTEncoder
from otus.promptable.interactive_training import SimulatedPrompts
from otus.promptable.mask_decoder import MaskDecoder, ProjectedImage
from otus.promptable.prompt_encoder import PromptBatch, PromptEncoder
from otus.promptable.tiny_vit import TinyViT
from otus.structures import Categories, Instances

if TYPE_CHECKING:
    from otus.promptable.method import SamMethod

_CHUNK_VALUES = 1 << 21
"""Feature map values, over all prompts, decoded at once on a CPU: few enough to stay in its caches."""
_CHUNK_VALUES_GPU = 1 << 26
_MAX_CACHED_BYTES = 4 << 30
"""Memory for the feature maps of a frozen encoder, in training."""


class _FeatureCache(dict[int, Tensor]):
    """Feature maps by hash of the image; a copy of the model starts without any."""

    def __deepcopy__(self, memo: dict[int, object]) -> "_FeatureCache":
        return _FeatureCache()


class Sam(BaseSystem[Stages, Instances]):
    """A promptable segmentation model, composed of an image encoder, a prompt encoder and a mask decoder.

    Parameters
    ----------
    image_encoder
        Module from padded images (B, 3, S, S) to feature maps (B, C, h, w).
    prompt_encoder
        Built for the same S, C, h and w.
    mask_decoder
        Built for C channels.
    categories
        A single category, since the model is class-agnostic.
    simulated_prompts
        How prompts are simulated in training.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        *,
        categories: Categories = OBJECT,
        simulated_prompts: SimulatedPrompts = SimulatedPrompts(),
    ) -> None:
        super().__init__()
        assert isinstance(image_encoder, nn.Module)
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.categories = categories
        self.simulated_prompts = simulated_prompts
        self.size_divisor = image_encoder.image_size  # batches are squares of this side
        self._cached_features = _FeatureCache()
        self.register_load_state_dict_post_hook(lambda module, _: module._cached_features.clear())  # type: ignore[no-untyped-call]

    @property
    def task(self) -> Task:
        """Promptable segmentation."""
        return PROMPTABLE

    @property
    def image_size(self) -> int:
        """Side of the padded images, in pixels."""
        return self.prompt_encoder.image_size

    @property
    def mask_size(self) -> int:
        """Side of the masks' logits."""
        return self.prompt_encoder.mask_size

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """The image encoder."""
        return ("image_encoder",)

    def forward(
        self, images: Float[Tensor, "b 3 s s"], sizes_hw: Int[Tensor, "b 2"] | None = None
    ) -> dict[str, Tensor]:
        """Return the feature maps of padded images as ``image_embeddings``; ``sizes_hw`` is not used."""
        return {"image_embeddings": self.image_encoder(images)}

    def project_image(
        self, features: Float[Tensor, "c h w"], masks: Float[Tensor, "b 1 m m"] | None = None
    ) -> ProjectedImage:
        """Compute the decoder's inputs that depend on the feature map and the mask prompts only (default: no masks)."""
        _, dense = self.prompt_encoder(masks=masks)
        return self.mask_decoder.project_image(features, dense, self.prompt_encoder.map_encodings())

    def decode(
        self, features: Float[Tensor, "c h w"], prompts: PromptBatch, *, image: ProjectedImage | None = None
    ) -> tuple[Float[Tensor, "b masks m m"], Float[Tensor, "b masks"]]:
        """Return logits and predicted IoUs of the M + 1 masks of each prompt; the first is for unambiguous prompts.

        Parameters
        ----------
        features
            Feature map of one image.
        prompts
            Prompts on this image.
        image
            Result of :meth:`project_image` without masks, if it was computed before (default: computed here).
        """
        outputs = [
            self.mask_decoder(*self.decoder_inputs(features, chunk, image=image))
            for chunk in prompts.split(self.chunk_size)
        ]
        return torch.cat([logits for logits, _ in outputs]), torch.cat([ious for _, ious in outputs])

    def decode_above(
        self,
        features: Float[Tensor, "c h w"],
        prompts: PromptBatch,
        iou_threshold: float,
        *,
        image: ProjectedImage | None = None,
    ) -> tuple[Float[Tensor, "n m m"], Float[Tensor, "n"], Int[Tensor, "n"]]:
        """Return logits, predicted IoUs and prompt indices of the candidates whose predicted IoU exceeds a threshold.

        Only prompts with such a candidate are upscaled. The other parameters are those of :meth:`decode`.

        Parameters
        ----------
        iou_threshold
            Minimum predicted IoU; 0 or less keeps all candidates.
        """
        logits, scores, prompt_indices = [], [], []
        for index, chunk in enumerate(prompts.split(self.chunk_size)):
            projected, prompt_tokens = self.decoder_inputs(features, chunk, image=image)
            tokens, locations = self.mask_decoder.attend(projected, prompt_tokens)
            ious = self.mask_decoder.predicted_ious(tokens)[:, 1:]
            keep = ious > (iou_threshold if iou_threshold > 0 else -torch.inf)
            has_any = keep.any(dim=1)
            chunk_logits = self.mask_decoder.logits(projected, tokens[has_any], locations[has_any])[:, 1:]
            logits.append(chunk_logits[keep[has_any]])
            scores.append(ious[keep])
            prompt_indices.append(index * self.chunk_size + keep.nonzero()[:, 0])
        return torch.cat(logits), torch.cat(scores), torch.cat(prompt_indices)

    def decoder_inputs(
        self, features: Float[Tensor, "c h w"], prompts: PromptBatch, *, image: ProjectedImage | None = None
    ) -> tuple[ProjectedImage, Float[Tensor, "b t c"]]:
        """Return the mask decoder's inputs: the projected image and the tokens of the prompts."""
        tokens, _ = self.prompt_encoder(
            prompts.points, prompts.labels, prompts.boxes, text=prompts.text, features=features
        )
        if prompts.masks is not None:
            image = self.project_image(features, prompts.masks)
        return self.project_image(features) if image is None else image, tokens.expand(len(prompts), -1, -1)

    @property
    def chunk_size(self) -> int:
        """Number of prompts decoded at once, so that memory does not grow with the number of prompts."""
        values = _CHUNK_VALUES if self.device.type == "cpu" else _CHUNK_VALUES_GPU
        return max(1, values // (self.prompt_encoder.map_size**2 * self.mask_decoder.embed_dim))

    def promptable_method(self, preprocess: Preprocess) -> "SamMethod":
        """Return the model as a promptable method; of ``preprocess`` only mean and std are used."""
        from otus.promptable.method import SamMethod

        return SamMethod(self, preprocess=preprocess)

    def target(self, sample: TensorSample) -> Bool[Tensor, "n h w"]:
        """Return the masks of the objects, without crowds."""
        if "masks" not in sample:
            raise ShapeError(f"sample {sample.get('key', '')}: expected masks to train on, got {sorted(sample)}")
        masks = sample["masks"].as_subclass(Tensor)
        crowds = sample.get("is_crowd", torch.zeros(len(masks), dtype=torch.bool))
        return masks[~crowds].to(self.device)

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Bool[Tensor, "_ _ _"]] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> Stages:
        """Encode the images and compute the losses of simulated prompts.

        Raises
        ------
        UsageError
            If there are no targets: without a prompt the model predicts nothing.
        """
        if targets is None:
            raise UsageError(
                "a promptable model needs points, boxes or masks: otus segment IMAGE --method NAME --point X,Y,1, or "
                "otus masks for everything in an image"
            )
        with watch.time("image encoder"):
            features = self._training_features(batch.images)
        with watch.time("losses"):
            losses = self.simulated_prompts.losses(self, batch.images, features, targets, generator=generator)
        return Stages(batch=batch, features=[features], milliseconds=watch.milliseconds, losses=losses)

    def _training_features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the feature maps of a batch; those of a frozen encoder are computed once for images that are seen again."""
        assert isinstance(self.image_encoder, nn.Module)
        if any(parameter.requires_grad for parameter in self.image_encoder.parameters()):
            self._cached_features.clear()
            return self.image_encoder(images).float()
        self.image_encoder.eval()  # batch norms keep their statistics
        features = []
        for image in images:
            key = hash(image.cpu().numpy().tobytes())
            cached = self._cached_features.get(key)
            if cached is None:
                with torch.no_grad():
                    cached = self.image_encoder(image[None])[0].half().cpu()
                if len(self._cached_features) * cached.nbytes < _MAX_CACHED_BYTES:
                    self._cached_features[key] = cached
            features.append(cached.to(images.device).float())
        return torch.stack(features)


def resized_hw(size_hw: tuple[int, int], longer_side: int) -> tuple[int, int]:
    """Return height and width of an image resized so that its longer side has ``longer_side`` pixels; 1 or more each.

    >>> resized_hw((480, 640), 1024), resized_hw((1, 12000), 1024)
    ((768, 1024), (1, 1024))
    """
    scale = longer_side / max(size_hw)
    return max(1, int(size_hw[0] * scale + 0.5)), max(1, int(size_hw[1] * scale + 0.5))


def prepare_image(
    image: UInt8[np.ndarray, "h w 3"], image_size: int, *, preprocess: Preprocess
) -> Float[Tensor, "1 3 s s"]:
    """Resize an image by Pillow, as the official predictor does, normalise it, and pad it below and to the right.

    Parameters
    ----------
    image
        RGB image.
    image_size
        Side S of the padded image, in pixels.
    preprocess
        Its mean and std are used, nothing else.
    """
    height, width = resized_hw((image.shape[0], image.shape[1]), image_size)
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return normalise_and_pad(
        torch.from_numpy(resized).permute(2, 0, 1)[None].float(), image_size, preprocess=preprocess
    )


def normalise_and_pad(
    pixels: Float[Tensor, "1 3 h w"], image_size: int, *, preprocess: Preprocess
) -> Float[Tensor, "1 3 s s"]:
    """Normalise a resized image, with values up to 255, and pad it below and to the right; see :func:`prepare_image`."""
    height, width = pixels.shape[2:]
    mean, std = (255 * pixels.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    padded = pixels.new_zeros(1, 3, image_size, image_size)
    padded[:, :, :height, :width] = (pixels - mean) / std
    return padded


def sam_vit_b(categories: Categories = OBJECT) -> Sam:
    """Build SAM with ViT-B."""
    return with_encoder(ViTEncoder(768, 12, 12, global_blocks=(2, 5, 8, 11)), categories)


def sam_vit_l(categories: Categories = OBJECT) -> Sam:
    """Build SAM with ViT-L."""
    return with_encoder(ViTEncoder(1024, 24, 16, global_blocks=(5, 11, 17, 23)), categories)


def sam_vit_h(categories: Categories = OBJECT) -> Sam:
    """Build SAM with ViT-H."""
    return with_encoder(ViTEncoder(1280, 32, 16, global_blocks=(7, 15, 23, 31)), categories)


def mobile_sam(categories: Categories = OBJECT) -> Sam:
    """Build MobileSAM: SAM with TinyViT."""
    return with_encoder(TinyViT(), categories)


def sam_efficientnet_lite0(
    categories: Categories = OBJECT,
    *,
    image_size: int = 512,
    freezing: Freezing = Freezing(),
    text_dim: int | None = None,
) -> Sam:
    """Build a small SAM over EfficientNet-Lite0 with 128 channels.

    Parameters
    ----------
    categories
        A single category.
    image_size
        Side of the padded image, a multiple of 32.
    freezing
        Which weights of the backbone are frozen.
    text_dim
        Channels of text embeddings (default: no text).
    """
    backbone = efficientnet_lite0_backbone(levels=(2, 3, 4, 5), freezing=freezing)
    encoder = BackboneEncoder(backbone, image_size=image_size)
    return with_encoder(encoder, categories, ffn_dim=512, text_dim=text_dim, point_features=True, mixing=True)


def with_encoder(
    image_encoder: ImageEncoder,
    categories: Categories = OBJECT,
    *,
    map_stride: int = 16,
    ffn_dim: int = 2048,
    text_dim: int | None = None,
    point_features: bool = False,
    mixing: bool = False,
) -> Sam:
    """Build SAM around an image encoder.

    Parameters
    ----------
    image_encoder
        Its ``out_channels`` become the embedding dimension of prompt encoder and mask decoder (official: 256).
    categories
        A single category.
    map_stride
        Stride of the encoder's feature map.
    ffn_dim
        Width of the MLPs in the mask decoder.
    text_dim
        Channels of text embeddings (default: no text).
    point_features
        See :class:`~otus.promptable.prompt_encoder.PromptEncoder`.
    mixing
        See :class:`~otus.promptable.mask_decoder.MaskDecoder`.
    """
    assert isinstance(image_encoder, nn.Module)
    channels, image_size = image_encoder.out_channels, image_encoder.image_size
    prompt_encoder = PromptEncoder(
        channels,
        map_size=image_size // map_stride,
        image_size=image_size,
        text_dim=text_dim,
        point_features=point_features,
    )
    return Sam(
        image_encoder, prompt_encoder, MaskDecoder(channels, ffn_dim=ffn_dim, mixing=mixing), categories=categories
    )
