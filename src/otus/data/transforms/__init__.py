"""Transforms of training samples: image, boxes, masks, keypoints and maps are transformed together.

A tensor sample is a dict (:mod:`otus.data.tensors`). Each transform is a frozen dataclass, called as
``transform(tensors, generator=generator)``; it draws random numbers only from this generator of the sample, so that the
result does not depend on the worker, and never changes its input.

One rule for objects that are partly cut off or hidden holds for crops, mosaic and copy-paste: the box is recomputed
from the mask, the area is reduced in proportion, and objects below a minimum visibility are dropped; crowds are always
kept.

Reading order:

1. :mod:`~otus.data.transforms.geometry`: flip, resize and crop without randomness, and that rule
   (:func:`~otus.data.transforms.geometry.refit_objects`).
2. :mod:`~otus.data.transforms.augmentation`: random flips, scales, crops and colours, and ``Compose``.
3. :mod:`~otus.data.transforms.mixing`: several images in one, mosaic (YOLOv4) and copy-paste (Ghiasi et al., 2021).
"""
