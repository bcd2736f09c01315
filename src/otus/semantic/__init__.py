"""Semantic segmentation: a category for every pixel.

The lecture presents it in three steps. *Sliding window*: a classifier predicts the category of a pixel from the patch around
it; exact, and a thousand times too slow, because the overlap of neighbouring patches is computed over and over. *Convolution
at full resolution*: the same layers are run once over the whole image; this shares the work, but every layer has the cost of
the full image, and adds little to the receptive field. *Encoder and decoder*: an encoder computes coarse feature maps with
large receptive fields at low cost, a decoder upsamples them to the image's size: by bed of nails, nearest, bilinear or
bicubic interpolation, max unpooling or transposed convolution (:mod:`otus.parts.upsampling`).

Read :mod:`~otus.semantic.segmenter` (the frame) and :mod:`~otus.semantic.encoders` first, then the papers in their order:
:mod:`~otus.semantic.sliding_window`, :mod:`~otus.semantic.full_resolution`, :mod:`~otus.semantic.fcn`,
:mod:`~otus.semantic.deconvnet`, :mod:`~otus.semantic.unet`, :mod:`~otus.semantic.segnet`,
:mod:`~otus.semantic.dilated` with :mod:`~otus.semantic.deeplabv3`,
:mod:`~otus.semantic.lraspp`, :mod:`~otus.semantic.semantic_fpn`.

======================  ==========================  ===============================  ==============================
system                  encoder                     decoder                          head
======================  ==========================  ===============================  ==============================
sliding window          a patch classifier          none                             1x1
full resolution         convolutions of stride 1    none                             1x1
FCN-32s, 16s, 8s        any backbone                logits of 1, 2, 3 maps summed    none: they are logits already
deconvolution network   VGG-16 to a single vector   unpool, transposed convolve      1x1
SegNet                  VGG-16                      unpool, convolve                 1x1
U-Net                   any, or the paper's own     upsample, concatenate, convolve  1x1
DeepLabV3               a dilated ResNet            none                             atrous pyramid
LR-ASPP                 a dilated MobileNetV3       two maps and a gate              none: they are logits already
Semantic FPN            any backbone                pyramid, all levels summed       1x1
======================  ==========================  ===============================  ==============================

Targets are class indices (H, W), 255 for pixels that are ignored in training and evaluation. The default loss is per-pixel
cross-entropy (others are in :mod:`otus.parts.semantic_losses`), the metric is mean IoU. Background is a category only if the
labels have it as one.
"""
