"""COCO evaluation behind pycocotools' interface, for code that was written for it.

- :mod:`.coco`: ``COCO``, a subset of ``pycocotools.coco.COCO``, and the reader that turns the annotations of either into
  :class:`otus.structures.Objects`;
- :mod:`.cocoeval`: ``COCOeval`` and ``Params`` over :class:`otus.metrics.detection.coco.CocoProtocol`.

Replace the import and nothing else::

    from otus.metrics.pycocotools.coco import COCO  # or pycocotools.coco
    from otus.metrics.pycocotools.cocoeval import COCOeval

Names, attributes and printed lines are pycocotools', figures equal to the last bit; known faults there are mended here and
listed in :mod:`.cocoeval`. A package that imports pycocotools itself, such as torchmetrics, runs on this evaluation after
:func:`otus.metrics.pycocotools.cocoeval.init_as_pycocotools`.
"""
