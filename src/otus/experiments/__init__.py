"""Several systems side by side: trained for the same time, judged on the same images, timed on the same machine.

A figure from a paper was measured on other data and another machine. Here the lecture's systems are compared with nothing
else changed: the same backbone, the same budget of minutes, the same images kept aside. What is finished is kept on disk
under the digest of everything that it depends on, so a comparison that was stopped goes on, and one more model costs only
itself. Models of any task can be compared, those of one task with one another.

Read in this order:

1. :mod:`~otus.experiments.compare`: ``otus.compare``, the table of several models, whose form is in
   :mod:`otus.reports.comparison`.
2. :mod:`~otus.experiments.lineage`: from R-CNN to Faster R-CNN, what an image costs, and what of it goes into proposals.
3. :mod:`~otus.experiments.recipes`: how the packaged weights and the figures of the documentation were made, as scripts
   that say their command, cost and expected figures.
"""
