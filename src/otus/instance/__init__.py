"""Instance segmentation, keypoints and panoptic segmentation: a detector with an additional head.

Mask R-CNN adds to Faster R-CNN a small fully convolutional network that predicts a mask in each detected box, one per class,
so that classes do not compete for pixels. Keypoint R-CNN predicts a heatmap per keypoint instead, whose target is a single
pixel. Both use RoI align on the feature pyramid of the detector: RoI pooling rounds regions to whole locations, which
hardly affects the class but misaligns a mask.

=================  ============================  =======================  =====================================
system             over                          head                     loss
=================  ============================  =======================  =====================================
Mask R-CNN         any Faster R-CNN              28 x 28 masks per class  binary cross-entropy of its own class
Keypoint R-CNN     any Faster R-CNN              56 x 56 per keypoint     cross-entropy over all pixels
=================  ============================  =======================  =====================================

Panoptic segmentation combines instances and a semantic map: each pixel belongs to at most one segment, an object or a stuff
category. :mod:`~otus.instance.panoptic` merges the outputs of any two models by a rule; Panoptic FPN predicts both from one
pyramid; panoptic DETR predicts things and stuff as one set, whose masks compete for each pixel.

=================  ============================  =======================================  ==================================
system             over                          head                                     loss
=================  ============================  =======================================  ==================================
Panoptic FPN       any Mask R-CNN                semantic branch on the pyramid           per-pixel cross-entropy as well
panoptic DETR      DETR                          attention of a query, upsampled          focal and Dice of matched masks
=================  ============================  =======================================  ==================================

Read :mod:`~otus.instance.mask_rcnn`, then :mod:`~otus.instance.keypoint_rcnn`; they are the ``mask_head`` and the
``keypoint_head`` of a :class:`otus.detection.region_based.region_detector.RegionDetector`.
Then read :mod:`~otus.instance.panoptic`, :mod:`~otus.instance.panoptic_fpn` and :mod:`~otus.instance.panoptic_detr`.
``mask_rcnn(detector)`` returns a new detector that shares the parts of the given one, which is not changed.
"""
