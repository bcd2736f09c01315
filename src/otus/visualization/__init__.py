"""Draw results on images, as uint8 RGB arrays (H, W, 3), without reading files or running models.

Read in this order:

- :mod:`.palette`: one colour per category, the same in every image, distinguishable for colour-blind readers too;
- :mod:`.text`: the font, label tags placed where they hide least, and legends;
- :mod:`.drawing`: :func:`~otus.visualization.drawing.draw` for boxes, masks, keypoints and oriented boxes,
  :func:`~otus.visualization.drawing.draw_semantic` and :func:`~otus.visualization.drawing.draw_panoptic` for maps, and
  :func:`~otus.visualization.drawing.overlay`, which enlarges small images and adds a legend if there is no room for tags;
- :mod:`.marks`: image crops with a few labelled boxes, for pages about single errors;
- :mod:`.panels`: several images in one: titled grids and mosaics.

Line widths and font sizes depend on the size of the image.
"""
