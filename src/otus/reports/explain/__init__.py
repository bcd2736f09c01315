"""Explanations: how a detector reaches its result on one image, and how a figure is computed.

Two kinds of pages, both with a ``document()`` for ``--json`` beside the ``page()``.

*A detector on one image* (``otus explain detection``). Each kind of detector records the stages of one pass; its explanation
draws them in the order in which they are computed, and shows which anchors, cells or queries training would assign to the
ground truth:

===================== ==========================================================================
``regression.py``     one vector, one class, one box per image
``region_based.py``   feature maps, anchors, proposals, region features, class scores, NMS, masks
``dense.py``          feature maps, anchors, assignment, scores at every location, NMS
``yolo.py``           the grid, boxes and confidences, class scores, responsible cells, NMS
``set_prediction.py`` feature maps, queries, cross-attention, Hungarian matching
===================== ==========================================================================

Read ``explanation.py`` first (the base class, the pass, the ground truth of an image), then ``figures.py`` (feature maps and
attention as images, rows of tables), then ``dense.py``; the others follow its pattern.

*A panoptic prediction* (``otus explain panoptic``): ``panoptic.py`` shows the two answers, instances and semantic map, and
what the merge makes of each instance and of each category of stuff.

*A figure* (``otus explain ap``, ``difference``, ``errors``): ``average_precision.py`` builds AP detection by detection,
``difference.py`` changes one rule after the other from one protocol to another, and ``errors.py`` shows what costs AP, by
TIDE's error types, with the images to look at first.

``taxonomy.py`` and ``taxonomy_page.py`` (``otus explain taxonomy``) derive from one image's labels the ground truth of every
task, from classification to panoptic segmentation, and draw it side by side.
"""
