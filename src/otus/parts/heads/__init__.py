"""Heads: from features to class logits and box deltas.

- :mod:`~otus.parts.heads.box_head`: for a region (R-CNN to Faster R-CNN), with the assignment of proposals and the losses;
- :mod:`~otus.parts.heads.dense_head`: for every anchor of the feature maps, by two convolutional towers (RetinaNet, FCOS);
- :mod:`~otus.parts.heads.location_head`: head and losses of FCOS and of its oriented variant;
- :mod:`~otus.parts.heads.semantic_fpn_head`: for every pixel, from all levels of a pyramid (Semantic and Panoptic FPN);
- :mod:`~otus.parts.heads.dense_scores`: which of 200,000 anchors become candidates for NMS;
- :mod:`~otus.parts.heads.class_indices`: the index of each label among the logits.

Labels run from 0; background is not a label. *Class indices* are positions among a head's logits: with a softmax, index 0
is background and label l is l + 1 by default; with sigmoids, label l is l. COCO checkpoints of other libraries have 91
logits, indexed by COCO's category ids, of which ten belong to no category; these stay in the softmax and are never reported.
"""
