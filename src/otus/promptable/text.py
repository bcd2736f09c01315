"""Text as a prompt: in training CLIP's embedding of an object's crop takes its place.

Shape shorthand: N objects or texts, E channels of CLIP's embeddings, S x S the padded image.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), section 7.5 and appendix D.5. CLIP ("Learning
Transferable Visual Models From Natural Language Supervision", Radford et al., ICML 2021, arXiv:2103.00020) embeds images and
texts in one space. A model that learned to segment the object whose crop has a given embedding therefore takes the embedding
of a text as well, and no mask needs a caption. The object's box is enlarged by a random factor between 1 and 2 and cropped
as a square; pixels outside the mask are zeroed half of the time; embeddings are L2-normalised. In training, the rounds after
that add points (:mod:`otus.promptable.interactive_training`).
Departures: no masked attention in CLIP's last layer, so any CLIP of transformers serves; small objects are used too; the
first prompt is text only for a share of the images, so that the model takes the other prompts as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2.functional import normalize, resized_crop

from otus.errors import CheckpointError, MissingExtraError, UsageError
from otus.parts.preprocess import Preprocess

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipEncoder:
    """CLIP as the encoder of text prompts.

    Parameters
    ----------
    model
        ``transformers.CLIPModel``; it is set to evaluation mode and not trained. The paper's is ViT-L/14 at 336 pixels.
    tokenizer
        Its tokenizer or processor.
    preprocess
        Mean and std by which the images of the promptable model are normalised (default: ImageNet's).
    """

    def __init__(self, model: Any, tokenizer: Any, *, preprocess: Preprocess = Preprocess()) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.preprocess = preprocess

    def __deepcopy__(self, memo: dict[int, Any]) -> "ClipEncoder":
        """Return the encoder itself: it is not trained, so copies of a model share it."""
        return self

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return the normalised embeddings of texts.

        Raises
        ------
        UsageError
            If a text is empty, or longer than CLIP takes.
        """
        if blank := [text for text in texts if not text.strip()]:
            raise UsageError(f"text: expected words, got {blank[0]!r}")
        tokens = self.tokenizer(text=list(texts), padding=True, return_tensors="pt")
        length, limit = tokens["input_ids"].shape[1], self.model.config.text_config.max_position_embeddings
        if length > limit:
            raise UsageError(f"text: expected at most {limit} tokens, got {length}; use fewer words")
        inputs = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        pooled = self.model.text_model(**inputs).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=1)

    @torch.no_grad()
    def embed_crops(
        self,
        image: Float[Tensor, "3 s s"],
        masks: Bool[Tensor, "n s s"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n e"]:
        """Return the normalised embeddings of the crops of objects.

        Parameters
        ----------
        image
            The promptable model's input, normalised.
        masks
            Masks of the objects, none of them empty.
        generator
            Source of randomness of the crops.
        """
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.preprocess.mean, self.preprocess.std))
        pixels = (image * std + mean).clamp(0, 1)
        side = self.model.config.vision_config.image_size
        crops = []
        for mask, box in zip(masks, masks_to_boxes(masks).tolist(), strict=True):
            left, top, width, height = box[0], box[1], box[2] + 1 - box[0], box[3] + 1 - box[1]
            factor, zeroed = torch.rand(2, generator=generator).tolist()
            length = max(1, round((1 + factor) * max(width, height)))
            corner = round(top + (height - length) / 2), round(left + (width - length) / 2)
            visible = pixels * mask if zeroed < 0.5 else pixels
            crops.append(resized_crop(visible, *corner, length, length, [side, side], antialias=True))
        batch = normalize(torch.stack(crops), list(_CLIP_MEAN), list(_CLIP_STD))
        pooled = self.model.vision_model(batch.to(self.model.device, self.model.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=1).to(image.device)


def load_clip(folder: str | Path, *, preprocess: Preprocess = Preprocess()) -> ClipEncoder:
    """Load a CLIP that transformers saved, or has in its cache; nothing is downloaded.

    Parameters
    ----------
    folder
        Folder of the model and its tokenizer, or a name in the cache, e.g. ``openai/clip-vit-large-patch14-336``.
    preprocess
        See :class:`ClipEncoder`.

    Raises
    ------
    MissingExtraError
        If transformers is not installed.
    CheckpointError
        If there is no such CLIP.
    """
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError:
        raise MissingExtraError("transformers", "transformers", "a text encoder") from None
    try:
        model = CLIPModel.from_pretrained(str(folder), local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{folder}: expected a folder with a CLIP of transformers and its tokenizer: {reason} "
            "(hf download openai/clip-vit-large-patch14-336 fetches the paper's)"
        ) from None
    return ClipEncoder(model, tokenizer, preprocess=preprocess)
