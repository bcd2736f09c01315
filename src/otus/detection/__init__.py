"""Detection: which objects are in the image, and a box and a score for each.

The chapter in the order of the lecture; every system answers the same verbs (:mod:`otus.parts.system`).

1. :mod:`~otus.detection.regression`: one object per image, class and box from one feature vector. It can say neither
   "none" nor "two", which is what everything below is about.
2. :mod:`~otus.detection.region_based`: classify regions of the image, first all windows, then proposals, then learned
   proposals (R-CNN to Faster R-CNN). Two stages.
3. :mod:`~otus.detection.single_stage`: classify anchors, grid cells or locations of the feature maps at once (YOLO, SSD,
   RetinaNet, FCOS). No proposals, but NMS still.
4. :mod:`~otus.detection.set_prediction`: predict the set of objects itself, matched one to one in training (DETR). No
   anchors, no NMS.

Each subroom has a *frame*, one class that runs the pass and knows no paper, and one file per paper that fills it by
composition. Papers do not import papers: what several share is in :mod:`otus.parts`. Two exceptions, checked by
import-linter: SSDLite is SSD with other layers, and Mask R-CNN and Keypoint R-CNN (:mod:`otus.instance`) are a Faster
R-CNN with a further head.
"""
