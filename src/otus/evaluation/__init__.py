"""Evaluation of predictions and models on labelled data sets, by named protocols.

A metric means nothing without its protocol: AP50 interpolated at eleven recalls is not AP50 by the area under the curve. So
each protocol is one record: the labels it needs, the predictions it reads, and how it evaluates them; the metrics are in
:mod:`otus.metrics`. A model is evaluated by the protocol of its task unless another is named, with the same pipeline as in
prediction (:mod:`otus.inference.pipeline`).

Predictions from files are evaluated without torch, which takes seconds to import.

Read in this order:

1. :mod:`~otus.evaluation.protocols`: the protocols and their interface.
2. :mod:`~otus.evaluation.evaluate`: ``otus.evaluate``, from data and predictions or a model to a report.
3. :mod:`~otus.evaluation.object_protocols` and :mod:`~otus.evaluation.image_protocols`: the evaluation of objects, and of
   one prediction per image (maps, categories, clicks).
4. :mod:`~otus.evaluation.on_dataset` and :mod:`~otus.evaluation.results`: a model's results on a data set, and their
   conversion to columns.
5. :mod:`~otus.evaluation.runs`: the validation images of a training.
6. :mod:`~otus.evaluation.comparing` and :mod:`~otus.evaluation.thresholds`: predictions beside labels, for explanations,
   and the best score threshold of each category.
"""
