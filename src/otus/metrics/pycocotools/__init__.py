"""COCO evaluation with the interface of pycocotools, for code that was written for it.

- :mod:`.coco`: ``COCO``, a subset of ``pycocotools.coco.COCO``, and the conversion of the annotations of either to
  :class:`otus.structures.Objects`;
- :mod:`.cocoeval`: ``COCOeval`` and ``Params`` over :class:`otus.metrics.detection.coco.CocoProtocol`.

Only the import changes::

    from otus.metrics.pycocotools.coco import COCO  # or pycocotools.coco
    from otus.metrics.pycocotools.cocoeval import COCOeval

Names, attributes and printed lines are those of pycocotools, and figures are equal to the last bit; known bugs of
pycocotools are fixed and listed in :mod:`.cocoeval`. A package that imports pycocotools itself, such as torchmetrics,
uses this evaluation after :func:`otus.metrics.pycocotools.cocoeval.init_as_pycocotools`.
"""
