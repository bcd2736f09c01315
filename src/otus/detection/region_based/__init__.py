"""Region-based detection: where to look, what is there, what to say.

In the field's terms: a *proposer* of regions, *region features*, and *heads* over them. Every detector is a composition of
these three:

===============  ==================  ======================================  =====================
system           proposer            region features                         heads
===============  ==================  ======================================  =====================
sliding window   all windows         warped crops, the backbone on each      class
R-CNN            Selective Search    warped crops, the backbone on each      class, box
SPP-net          Selective Search    feature map, spatial pyramid pooling    class, box
Fast R-CNN       Selective Search    feature map, RoI pooling                class, box
Faster R-CNN     RPN                 feature map or pyramid, RoI pool/align  class, box
Mask R-CNN       RPN                 pyramid, RoI align                      class, box, mask
Keypoint R-CNN   RPN                 pyramid, RoI align                      class, box, keypoints
===============  ==================  ======================================  =====================

Read in this order: :mod:`~otus.detection.region_based.sliding_window` (thousands of crops per image, boxes only as accurate
as the nearest window), :mod:`~otus.detection.region_based.rcnn` (crops of proposals only, and box regression),
:mod:`~otus.detection.region_based.spp_net` (the backbone once per image), :mod:`~otus.detection.region_based.fast_rcnn`
(backpropagation through the pooling, joint loss), :mod:`~otus.detection.region_based.faster_rcnn` (learned proposals).
The base detector is :mod:`~otus.detection.region_based.region_detector`, the record of its forward pass
:mod:`~otus.detection.region_based.stages`; the last two rows are in :mod:`otus.instance`.
"""
