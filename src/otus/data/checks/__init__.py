"""Checks of a data set: what ``otus doctor`` reports, and what a training checks before it starts.

A missing image stops a training, boxes in the wrong unit spoil it, the same photograph in train and val spoils its figures.
Readers report invalid records; the checks here find what is valid but wrong. Each problem is a
:class:`~otus.data.checks.labels.Finding` with kind, file, record and remedy.

Reading order:

1. :mod:`~otus.data.checks.labels`: labels alone: duplicate ids, boxes outside the image, masks and areas that disagree.
2. :mod:`~otus.data.checks.derived_fields`: numbers in COCO files that follow from others.
3. :mod:`~otus.data.checks.near_duplicates`: the same photograph at another size or compression.
4. :mod:`~otus.data.checks.doctor`: all of these with every image decoded once, over all splits together.
5. :mod:`~otus.data.checks.images`: the short check before training, and digests that identify training images later.
"""
