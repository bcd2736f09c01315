"""Promptable segmentation: a point, a box or a rough mask marks an object, and a model predicts its mask.

Segment Anything's idea is to do the heavy work once per image. An image encoder computes a feature map, an :class:`Embedding
<otus.promptable.embedding.Embedding>`, that does not depend on the prompts. A prompt becomes a few tokens, and a light
decoder predicts masks in interactive time. One click may mean a shirt, its wearer or a crowd, so three masks are predicted,
each with an estimate of its IoU. Without prompts from a user, a grid of points finds everything in an image. Read in this
order:

1. :mod:`~otus.promptable.image_encoder`: a vision transformer with windowed attention and relative position embeddings;
   :mod:`~otus.promptable.tiny_vit`: MobileSAM's, at a hundredth of the cost; :mod:`~otus.promptable.backbone_encoder`: a
   convolutional one, which can be trained on few images;
2. :mod:`~otus.promptable.prompt_encoder`: points, boxes and text as tokens, masks as feature maps;
3. :mod:`~otus.promptable.mask_decoder`: cross-attention of tokens and feature map; masks and their predicted IoUs;
4. :mod:`~otus.promptable.sam`: the model composed of these three, and the preprocessing of images;
5. :mod:`~otus.promptable.mask_upscaling`: from the decoder's low-resolution logits to masks of the image;
6. :mod:`~otus.promptable.method`: ``embed`` and ``segment``, the interface of every promptable method;
   :mod:`~otus.promptable.predictor`: the interface of the official ``SamPredictor``;
   :mod:`~otus.promptable.zoom_in`: small objects are predicted in enlarged windows;
7. :mod:`~otus.promptable.automatic`: automatic mask generation by a grid of points;
8. :mod:`~otus.promptable.interactive_training`: simulated prompts over several rounds, and the losses;
   :mod:`~otus.promptable.text`: CLIP's embeddings as text prompts.

======================  ====================  ==============  =========================
model                   image encoder         feature map     decoder
======================  ====================  ==============  =========================
``sam_vit_b``           ViT-B                 256 x 64 x 64   two-way transformer, 256
``sam_vit_l``           ViT-L                 256 x 64 x 64   the same
``sam_vit_h``           ViT-H                 256 x 64 x 64   the same
``mobile_sam``          TinyViT               256 x 64 x 64   the same
``sam_efficientnet_…``  EfficientNet-Lite0    128 x 32 x 32   two-way transformer, 128
======================  ====================  ==============  =========================

To the feature map of the last one, details of strides 8 and 4 are appended, see
:mod:`~otus.promptable.backbone_encoder`.
"""
