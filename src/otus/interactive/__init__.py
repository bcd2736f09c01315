"""Interactive segmentation without learning: a mask from points, strokes or a box, by graph cuts.

It needs neither weights nor torch. The user's marks are a :class:`~otus.structures.prompt.Prompt`; every method has
``embed(image)``, called once per image, and ``segment(embedding, prompt)``, like the learned promptable methods. Read in
this order:

1. :mod:`~otus.interactive.max_flow`: maximum flow and minimum cut on pixel grids, for any capacities;
2. :mod:`~otus.interactive.graph_cut`: a mask from points and strokes as a minimum cut, with
   :mod:`~otus.interactive.color_models` and :mod:`~otus.interactive.geodesic` distances;
3. :mod:`~otus.interactive.multi_object`: several objects at once, by alpha-expansion;
4. :mod:`~otus.interactive.grab_cut`: a mask from a box;
5. :mod:`~otus.interactive.methods`: these methods by name; :mod:`~otus.interactive.mask_files`: their masks as files.

=========================================================  ===========================
prompt                                                     method
=========================================================  ===========================
points or strokes on one object, optionally on background  GraphCut
points or strokes on each of N objects                     GraphCut by alpha-expansion
a box, with or without strokes                             GrabCut
=========================================================  ===========================

The simulated clicks by which these and the learned methods are evaluated are in :mod:`otus.metrics.clicks`.
"""
