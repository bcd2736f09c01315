"""Metrics of predictions against ground truth: one file per task, in numpy and numba, without torch.

Every metric has three methods: ``update`` adds ground truth and predictions of images, ``merge`` adds the metric of
another shard, ``compute`` returns the result. A result has ``figures`` (name to value) and ``per_category``; undefined
figures are NaN, never 0, and are left out of means.

Read in this order:

- :mod:`~otus.metrics.classification`: top-k accuracy, and the interface that all metrics share;
- :mod:`~otus.metrics.semantic`: mIoU and accuracy from a confusion matrix of pixels; boundary F for contours;
- :mod:`~otus.metrics.detection`: matching, precision-recall curves and AP, for boxes, masks, keypoints, oriented boxes,
  cuboids and amodal objects;
- :mod:`~otus.metrics.panoptic`: PQ = SQ * RQ; matches have an IoU over 0.5, so they are unique;
- :mod:`~otus.metrics.proposals`: recall and average best overlap by number of proposals, without matching;
- :mod:`~otus.metrics.interactive`: number of clicks until an IoU is reached;
- :mod:`~otus.metrics.diagnosis`: why a detector's AP is not 1, and whether a difference is significant;
- :mod:`~otus.metrics.pycocotools`: the same evaluation with the interface of pycocotools' ``COCO`` and ``COCOeval``.

Compiled loops are in ``_*_kernels.py``; their tests compare each with a slow reference.
"""
