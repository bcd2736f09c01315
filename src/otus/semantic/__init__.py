"""Semantic segmentation: a category for every pixel.

The lecture tells it in three steps. *Slide a window*: a classifier sees the patch around a pixel and says what the
pixel shows; exact, and a thousand times too slow, because neighbouring patches are computed over and over. *Convolve at
full resolution*: run the same layers once over the whole image; shared work, but every layer costs what the image's
size costs, and sees only a little further than the one before. *Go down and come up*: an encoder makes coarse maps that
see far and cost little, a decoder brings them back to the image's size, and how it does that is the art: bed of nails,
nearest, bilinear, bicubic, max unpooling, transposed convolution (:mod:`otus.parts.upsampling`).

Read :mod:`~otus.semantic.segmenter` (the frame) and :mod:`~otus.semantic.encoders` first, then the papers as they came:
:mod:`~otus.semantic.sliding_window`, :mod:`~otus.semantic.full_resolution`, :mod:`~otus.semantic.fcn`,
:mod:`~otus.semantic.deconvnet`, :mod:`~otus.semantic.unet`, :mod:`~otus.semantic.segnet`,
:mod:`~otus.semantic.dilated` with :mod:`~otus.semantic.deeplabv3`,
:mod:`~otus.semantic.lraspp`, :mod:`~otus.semantic.semantic_fpn`.

======================  ==========================  ===============================  ==============================
system                  encoder                     decoder                          head
======================  ==========================  ===============================  ==============================
sliding window          a patch classifier          none                             1x1
full resolution         convolutions of stride 1    none                             1x1
FCN-32s, 16s, 8s        any backbone                scores of 1, 2, 3 maps summed    none: they are scores already
deconvolution network   VGG-16 down to a vector     unpool, transposed convolve      1x1
SegNet                  VGG-16                      unpool, convolve                 1x1
U-Net                   any, or the paper's own     upsample, concatenate, convolve  1x1
DeepLabV3               a dilated ResNet            none                             atrous pyramid
LR-ASPP                 a dilated MobileNetV3       two maps and a gate              none: they are scores already
Semantic FPN            any backbone                pyramid, all levels summed       1x1
======================  ==========================  ===============================  ==============================

Targets are integers (H, W), 255 where nothing is learned or judged; the loss is cross-entropy per pixel unless another of
:mod:`otus.parts.semantic_losses` is chosen; the score is mean IoU. A category is whatever the labels name: background
is one only where they say so.
"""
