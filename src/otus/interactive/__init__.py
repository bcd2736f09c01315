"""Interactive segmentation: a person marks a little, a mask comes back. No weights are needed, and no torch.

What is marked is a :class:`~otus.structures.prompt.Prompt`; every method answers ``embed(image)``, once, and
``segment(embedding, prompt)``, as the learned promptable methods do. Read in this order:

1. :mod:`~otus.interactive.max_flow`: maximum flow and minimum cut on pixel grids, from any capacities;
2. :mod:`~otus.interactive.graph_cut`: a mask from points and strokes as the cheapest cut, with what it is made of,
   :mod:`~otus.interactive.color_models` and :mod:`~otus.interactive.geodesic` distances;
3. :mod:`~otus.interactive.multi_object`: several objects at once, by alpha-expansion;
4. :mod:`~otus.interactive.grab_cut`: a mask from a box.

=========================================================  ===========================
marked                                                     method
=========================================================  ===========================
points or strokes on one object, on background too or not  GraphCut
points or strokes on each of N objects                     GraphCut by alpha-expansion
a box, with or without strokes                             GrabCut
=========================================================  ===========================

Simulated clicks, by which these and the learned methods are judged, are in :mod:`otus.metrics.clicks`.
"""
