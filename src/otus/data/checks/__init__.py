"""Checks of a data set, for ``otus doctor`` and before training.

A missing image stops training, boxes in the wrong unit ruin it, the same photograph in train and val inflates the
metrics. Readers report invalid records; the checks here find what is valid but wrong. Each problem is a
:class:`~otus.data.checks.labels.Finding` with kind, file, record and remedy.

Reading order:

1. :mod:`~otus.data.checks.labels`: checks of labels alone: duplicate ids, boxes outside the image, inconsistent masks
   and areas.
2. :mod:`~otus.data.checks.derived_fields`: numbers in COCO files that follow from others.
3. :mod:`~otus.data.checks.near_duplicates`: the same photograph at another size or compression.
4. :mod:`~otus.data.checks.doctor`: all of these with every image decoded once, over all splits together.
5. :mod:`~otus.data.checks.images`: the short check before training, and digests that identify training images later.
"""
