"""Instance segmentation, keypoints and panoptic segmentation: a detector with one more head.

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

Panoptic segmentation is instances and a semantic map in one: each pixel belongs to one segment at most, an object or a kind
of stuff. :mod:`~otus.instance.panoptic` merges the two answers by a rule, whatever models gave them; Panoptic FPN gives both
from one pyramid; for DETR things and stuff are one set, whose masks compete for each pixel.

=================  ============================  =======================================  ==================================
system             over                          head                                     loss
=================  ============================  =======================================  ==================================
Panoptic FPN       any Mask R-CNN                semantic branch on the pyramid           cross-entropy of the pixels, too
panoptic DETR      DETR                          attention of a query, brought up         focal and Dice of matched masks
=================  ============================  =======================================  ==================================

Read :mod:`~otus.instance.mask_rcnn`, then :mod:`~otus.instance.keypoint_rcnn`; the frame is
:class:`otus.detection.region_based.region_detector.RegionDetector`, whose ``mask_head`` and ``keypoint_head`` they fill.
Then :mod:`~otus.instance.panoptic`, :mod:`~otus.instance.panoptic_fpn` and :mod:`~otus.instance.panoptic_detr`.
``mask_rcnn(detector)`` returns a new detector over the same parts and leaves the one given as it was.
"""
