"""Region-based detection: where to look, what is there, what to say.

In the field's terms: a *proposer* of regions, *region features*, and *heads* over them. A detector is these three, put
into one frame, and the history of the field is what was put in:

===============  ==================  ======================================  =====================
system           proposer            region features                         heads
===============  ==================  ======================================  =====================
sliding window   all windows         warped crops, the network on each       class
R-CNN            Selective Search    warped crops, the network on each       class, box
SPP-net          Selective Search    shared map, spatial pyramid pooling     class, box
Fast R-CNN       Selective Search    shared map, RoI pooling                 class, box
Faster R-CNN     RPN                 shared map or pyramid, RoI pool, align  class, box
Mask R-CNN       RPN                 pyramid, RoI align                      class, box, mask
Keypoint R-CNN   RPN                 pyramid, RoI align                      class, box, keypoints
===============  ==================  ======================================  =====================

Read in this order: :mod:`~otus.detection.region_based.sliding_window` (thousands of crops per image, boxes as good as the
nearest window), :mod:`~otus.detection.region_based.rcnn` (crops only where something may be, and box regression),
:mod:`~otus.detection.region_based.spp_net` (the network once per image), :mod:`~otus.detection.region_based.fast_rcnn`
(gradient through the pooling, one loss), :mod:`~otus.detection.region_based.faster_rcnn` (proposals are learned too).
The frame is :mod:`~otus.detection.region_based.region_detector`, the record of a pass
:mod:`~otus.detection.region_based.stages`; the last two rows are in :mod:`otus.instance`.
"""
