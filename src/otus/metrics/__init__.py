"""How good is a prediction? One file per task, in numpy and numba, without torch.

Every metric has the same three verbs: ``update`` with ground truth and prediction of more images, ``merge`` with the metric
of another shard, ``compute`` the result. A result has ``figures`` (name to value) and ``per_category``; what is undefined is
NaN, never 0, and is left out of means.

Read in this order:

- :mod:`~otus.metrics.classification`: top-k accuracy, and the shape that all metrics share;
- :mod:`~otus.metrics.semantic`: one confusion matrix of pixels gives mIoU and accuracy; boundary F judges contours;
- :mod:`~otus.metrics.detection`: matching, precision-recall curves and AP, for boxes, masks, keypoints, oriented boxes,
  cuboids and amodal objects;
- :mod:`~otus.metrics.panoptic`: PQ = SQ * RQ, where an IoU over 0.5 makes the matching unique;
- :mod:`~otus.metrics.proposals`: recall and average best overlap by number of proposals, without matching;
- :mod:`~otus.metrics.interactive`: number of clicks until an IoU is reached;
- :mod:`~otus.metrics.diagnosis`: why a detector's AP is not 1, and whether a difference is more than luck;
- :mod:`~otus.metrics.pycocotools`: the same evaluation behind pycocotools' ``COCO`` and ``COCOeval``.

Compiled loops are in ``_*_kernels.py``, each beside a slow reference in its tests.
"""
