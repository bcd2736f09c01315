"""Results drawn on images, as uint8 RGB arrays (H, W, 3); nothing here writes a file or knows a model.

Read in this order:

- :mod:`.palette`: one colour per category, the same in every image, chosen to be told apart by colour-blind readers too;
- :mod:`.text`: text: the font, tags placed where they hide least, and legends;
- :mod:`.drawing`: :func:`~otus.visualization.drawing.draw` for boxes, masks, keypoints and oriented boxes,
  :func:`~otus.visualization.drawing.draw_semantic` and :func:`~otus.visualization.drawing.draw_panoptic` for maps, and
  :func:`~otus.visualization.drawing.overlay`, which enlarges small images and adds a legend where tags find no room;
- :mod:`.marks`: image crops with a few named boxes, for pages about single errors;
- :mod:`.panels`: several images in one: titled grids and mosaics.

Sizes of lines and letters follow from the image's size.
"""
