"""Transforms of training samples: image, boxes, masks, keypoints and maps move together.

A tensor sample is a dict (:mod:`otus.data.tensors`). Each transform is a frozen dataclass, called as
``transform(tensors, generator=generator)``; it draws its random numbers from the sample's own generator, so a sample comes
out the same whatever worker makes it, and never changes its input.

Cutting an object needs a rule, the same for crops, mosaic and copy-paste: its mask decides its new box, its area shrinks in
proportion, and below a minimum visibility the object is dropped; crowds always stay.

Reading order:

1. :mod:`~otus.data.transforms.geometry`: flip, resize and crop without randomness, and that rule
   (:func:`~otus.data.transforms.geometry.refit_objects`).
2. :mod:`~otus.data.transforms.augmentation`: random flips, scales, crops and colours, and ``Compose``.
3. :mod:`~otus.data.transforms.mixing`: several images in one, mosaic (YOLOv4) and copy-paste (Ghiasi et al., 2021).
"""
