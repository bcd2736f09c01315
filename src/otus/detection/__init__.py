"""Detection: which objects are in the image, and a box and a score for each.

Read in the order of the lecture; all systems have the same methods (:mod:`otus.parts.system`).

1. :mod:`~otus.detection.regression`: one object per image, class and box from one feature vector. It can predict neither
   no object nor two objects, which all methods below can.
2. :mod:`~otus.detection.region_based`: classify regions of the image, first all windows, then proposals, then learned
   proposals (R-CNN to Faster R-CNN). Two stages.
3. :mod:`~otus.detection.single_stage`: classify anchors, grid cells or locations of the feature maps at once (YOLO, SSD,
   RetinaNet, FCOS). No proposals, but still NMS.
4. :mod:`~otus.detection.set_prediction`: predict the set of objects directly, matched one to one in training (DETR). No
   anchors, no NMS.

Each subpackage has a base detector, one class that runs the forward pass for all its systems, and one file per paper that
composes it with parts. The files of papers do not import one another: what several share is in :mod:`otus.parts`. Two
exceptions, checked by import-linter: SSDLite is SSD with other layers, and Mask R-CNN and Keypoint R-CNN
(:mod:`otus.instance`) are a Faster R-CNN with a further head.
"""
