"""Boxes in training and prediction: anchors, matching to ground truth, sampling, box deltas, NMS, oriented boxes.

Boxes are xyxy in pixels, float32, unless a name says otherwise (``xywhr``: oriented; ``cxcywh``: set prediction). The order
of reading is that of a training step of a dense detector:

1. :mod:`~otus.parts.boxes.anchors` or :mod:`~otus.parts.boxes.locations`: the references that predictions are relative to;
2. :mod:`~otus.parts.boxes.matching` (by IoU), :class:`~otus.parts.boxes.locations.LocationMatcher` (by position and size)
   or :mod:`~otus.parts.boxes.task_aligned` (by the current predictions): each reference is matched to an object, negative
   or neutral;
3. :mod:`~otus.parts.boxes.sampling`: how many positives and negatives a step is trained on;
4. :mod:`~otus.parts.boxes.coding`: a box as deltas relative to its reference, and back.

Prediction ends with :mod:`~otus.parts.boxes.nms`. :mod:`~otus.parts.boxes.oriented` has the same for oriented boxes.
Crowds (boxes of many objects at once) are never matched: predictions inside them are neutral.
"""
