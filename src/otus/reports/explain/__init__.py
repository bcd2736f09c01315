"""Explanations: how a model reaches its result on one image, and how a metric is computed.

Each has a ``document()`` for ``--json`` and a ``page()``.

*A detector on one image* (``otus explain detection``). Each kind of detector records the stages of a forward pass; its
explanation draws them in the order in which they are computed, and shows which anchors, cells or queries are assigned to the
ground truth in training:

===================== ==========================================================================
``regression.py``     one vector, one class, one box per image
``region_based.py``   feature maps, anchors, proposals, region features, class scores, NMS, masks
``dense.py``          feature maps, anchors, assignment, scores at every location, NMS
``yolo.py``           the grid, boxes and confidences, class scores, responsible cells, NMS
``set_prediction.py`` feature maps, queries, cross-attention, Hungarian matching
===================== ==========================================================================

Read ``explanation.py`` first (the base class, the forward pass, the ground truth of an image), then ``figures.py`` (feature
maps and attention as images, rows of tables), then ``dense.py``; the others follow its pattern.

*A semantic segmenter on one image*: ``semantic.py`` (``otus explain semantic``) shows encoder, decoder, class probabilities
and errors; ``upsampling.py`` (``otus explain upsampling``) compares the upsampling methods on a feature map.

*A panoptic prediction* (``otus explain panoptic``): ``panoptic.py`` shows the instances and the semantic map, and what
becomes of each instance and each category of stuff when they are merged. *GraphCut* (``otus explain graph-cut``):
``graph_cut.py``.

*A metric* (``otus explain ap``, ``difference``, ``errors``): ``average_precision.py`` builds AP detection by detection,
``difference.py`` explains the difference of two protocols, one rule after the other, and ``errors.py`` shows the cost of
TIDE's error types in AP, with the images to look at first.

``taxonomy.py`` and ``taxonomy_page.py`` (``otus explain taxonomy``) derive from one image's labels the ground truth of every
task, from classification to panoptic segmentation, and draw it side by side.
"""
