"""Heads: from features to class logits and box deltas.

- :mod:`~otus.parts.heads.box_head`: of a region (R-CNN to Faster R-CNN), with the assignment of proposals and its losses;
- :mod:`~otus.parts.heads.dense_head`: of every anchor of feature maps, by two towers of convolutions (RetinaNet, FCOS);
- :mod:`~otus.parts.heads.location_head`: FCOS's head and losses, which its oriented form shares;
- :mod:`~otus.parts.heads.semantic_fpn_head`: of every pixel, from all levels of a pyramid (Semantic and Panoptic FPN);
- :mod:`~otus.parts.heads.dense_scores`: which of 200,000 anchors become candidates for NMS;
- :mod:`~otus.parts.heads.class_indices`: at which index of the logits each label is.

Labels run from 0 and know no background. Class *indices* are positions among a head's logits: with a softmax, index 0 is
background and label l is l + 1 by default; with sigmoids, label l is l. Checkpoints of COCO trained by others have 91 logits
by COCO's ids, of which ten belong to no category; they stay in the softmax and are never reported.
"""
