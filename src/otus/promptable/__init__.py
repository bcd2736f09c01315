"""Promptable segmentation: a point, a box or a rough mask says what is meant, and a model draws it.

Segment Anything's idea is to do the heavy work once. An image encoder turns the image into a map, an :class:`Embedding
<otus.promptable.embedding.Embedding>`, whatever will be asked. A prompt becomes a few tokens, and a light decoder answers
while a person waits. One click may mean a shirt, its wearer or a crowd, so three masks come back, each with the IoU that the
model expects of it. Without anyone to ask, a grid of points finds everything in an image. Read in this order:

1. :mod:`~otus.promptable.image_encoder`: a vision transformer with windowed attention and relative positions;
   :mod:`~otus.promptable.tiny_vit`: MobileSAM's, a hundredth of the work; :mod:`~otus.promptable.backbone_encoder`: a
   convolutional one, which learns from few images;
2. :mod:`~otus.promptable.prompt_encoder`: points, boxes, masks and text as tokens and maps;
3. :mod:`~otus.promptable.mask_decoder`: tokens and map attend to one another; masks and their predicted IoUs;
4. :mod:`~otus.promptable.sam`: the three put together, and the images on their way in;
5. :mod:`~otus.promptable.mask_upscaling`: from the decoder's small logits to masks of the image;
6. :mod:`~otus.promptable.method`: ``embed`` and ``segment``, the interface of every promptable method;
   :mod:`~otus.promptable.predictor`: the same as ``SamPredictor``'s calls;
7. :mod:`~otus.promptable.automatic`: everything in an image, by a grid of points;
8. :mod:`~otus.promptable.interactive_training`: simulated prompts, round after round, and the losses.

======================  ====================  ==============  =========================
model                   image encoder         map             decoder
======================  ====================  ==============  =========================
``sam_vit_b``           ViT-B                 256 x 64 x 64   two-way transformer, 256
``sam_vit_l``           ViT-L                 256 x 64 x 64   the same
``sam_vit_h``           ViT-H                 256 x 64 x 64   the same
``mobile_sam``          TinyViT               256 x 64 x 64   the same
``sam_efficientnet_…``  EfficientNet-Lite0    128 x 32 x 32   two-way transformer, 128
======================  ====================  ==============  =========================
"""
