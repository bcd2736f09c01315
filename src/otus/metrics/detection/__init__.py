"""Average precision (AP) of detections, over any similarity and by the rules of any protocol.

A detection is a true positive if it is matched to a ground truth of its image and category with enough IoU, else a false
positive, unless it is ignored. In descending order of score, recall = TP / positives and precision = TP / (TP + FP); AP
is the area under that curve. Protocols differ in how they match, what they ignore, and how they integrate the curve.

The files follow the computation:

1. :mod:`.pairs`: rank the detections of each image and label, and find the pairs of a detection and a ground truth that
   reach the lowest IoU threshold (:mod:`.mask_pairs` for masks, from polygons and RLE without dense arrays);
2. :mod:`.matching`: match the pairs, which gives the outcome of each detection at every threshold and area range;
3. :mod:`.precision_recall`: curves, their interpolation, and the area under them;
4. :mod:`.average_precision`: the metric that runs a protocol over images and shards.

Protocols: :mod:`.coco` and :mod:`.voc`; with other similarities :mod:`.oriented`, :mod:`.cuboid`, :mod:`.amodal` and
:mod:`.boundary`. :mod:`.rules` has every choice in which protocols differ as a separate setting. :mod:`.ignore_regions`
and :mod:`.required_fields` prepare and check the records.
"""
