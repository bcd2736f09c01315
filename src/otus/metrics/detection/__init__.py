"""Average precision of detections, whatever is compared and by whose rules.

A detection is a true positive if it is matched to a ground truth of its image and category with enough IoU, else a false
positive, unless it is ignored. Going down the scores, recall = TP / positives and precision = TP / (TP + FP); AP is the area
under that curve. Protocols differ in how they match, what they ignore, and where they read the curve.

The files follow the computation:

1. :mod:`.pairs`: rank the detections of each image and label, and find the pairs of a detection and a ground truth that
   reach the lowest IoU threshold (:mod:`.mask_pairs` for masks, from polygons and RLE without dense arrays);
2. :mod:`.matching`: make of the pairs the outcome of each detection at every threshold and area range;
3. :mod:`.precision_recall`: curves, their interpolation, and the area;
4. :mod:`.average_precision`: the metric that runs a protocol over images and shards.

Protocols: :mod:`.coco` and :mod:`.voc`; over another similarity :mod:`.oriented`, :mod:`.cuboid`, :mod:`.amodal` and
:mod:`.boundary`. :mod:`.rules` has every choice in which they differ as a setting of its own. :mod:`.ignore_regions` and
:mod:`.required_fields` prepare and check the records.
"""
