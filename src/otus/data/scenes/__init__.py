"""Synthetic scenes: images with complete ground truth, drawn on demand from a seed.

For tests, first steps, and labels that real data sets seldom have: amodal boxes and masks, oriented boxes, occlusion.
Textured shapes (circle, star, kite …) lie over sky, water, grass and sand and occlude one another. Since the drawing
order is known, so is everything else: visible and amodal masks, keypoints with visibility, semantic and panoptic maps.

Reading order:

1. :mod:`~otus.data.scenes.shapes`: outlines in a local frame, their pose in the image, and anti-aliased rasterising.
2. :mod:`~otus.data.scenes.generator`: :class:`~otus.data.scenes.generator.Scenes`, which places objects and derives the
   ground truth from a map of object ids.
3. :mod:`~otus.data.scenes.files`: the scenes as a COCO data set on disk.
"""
