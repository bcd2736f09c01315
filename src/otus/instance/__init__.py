"""Instance segmentation and keypoints: a detector with one more head per object.

Mask R-CNN adds to Faster R-CNN a small fully convolutional network that draws a mask in each detected box, one per class, so
that classes do not compete for pixels. Keypoint R-CNN draws a heatmap per keypoint instead, in which one pixel is right.
Both read the feature pyramid that the detector has computed anyway, by RoI align: RoI pooling rounds regions to whole cells,
which a class survives and a mask does not.

=================  ============================  =======================  =====================================
system             over                          head                     loss
=================  ============================  =======================  =====================================
Mask R-CNN         any Faster R-CNN              28 x 28 masks per class  binary cross-entropy of its own class
Keypoint R-CNN     any Faster R-CNN              56 x 56 per keypoint     cross-entropy over all cells
=================  ============================  =======================  =====================================

Read :mod:`~otus.instance.mask_rcnn`, then :mod:`~otus.instance.keypoint_rcnn`; the frame is
:class:`otus.detection.region_based.region_detector.RegionDetector`, whose ``mask_head`` and ``keypoint_head`` they fill.
``mask_rcnn(detector)`` returns a new detector over the same parts and leaves the one given as it was.
"""
