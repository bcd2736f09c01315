"""Several systems side by side: trained for the same time, evaluated on the same images, timed on the same machine.

A figure from a paper was measured on other data and another machine. Here the lecture's systems are compared with nothing
else changed: the same backbone, the same budget of minutes, the same validation images. Finished results are cached on
disk under a digest of their inputs, so an interrupted comparison can be resumed, and a further model costs only its own
training and evaluation. All models of a comparison must have the same task, which may be any.

Read in this order:

1. :mod:`~otus.experiments.compare`: ``otus.compare``, the table of several models, whose form is in
   :mod:`otus.reports.comparison`.
2. :mod:`~otus.experiments.ablation`: ``otus compare --vary``, variants of a model that differ in one argument, with
   several seeds each.
3. :mod:`~otus.experiments.lineage`: time per image from R-CNN to Faster R-CNN, with and without proposals;
   :mod:`~otus.experiments.segmentation_costs`: the costs of three ways of semantic segmentation.
4. :mod:`~otus.experiments.recipes`: how the packaged weights and the figures of the documentation were made, as scripts
   with their commands, cost and expected figures.
"""
