"""How good predictions are, by which protocol, and on which images.

A figure without its protocol says nothing: AP50 by eleven points is not AP50 by the whole area, and a mean over categories
hides which of them has no objects. So each protocol is one record, which says which labels it needs, what predictions it
reads, and how it judges them; the metrics themselves are in :mod:`otus.metrics`. A model is judged by the protocol of its
task unless another is named, on results that take the path of every prediction (:mod:`otus.inference.pipeline`).

Predictions from files are judged without torch, which takes seconds to import; only what runs a model imports it.

Read in this order:

1. :mod:`~otus.evaluation.protocols`: the records, and what they have in common.
2. :mod:`~otus.evaluation.evaluate`: ``otus.evaluate``, from data and predictions or a model to a report.
3. :mod:`~otus.evaluation.object_protocols` and :mod:`~otus.evaluation.image_protocols`: how objects are judged, and what has
   one prediction per image (maps, categories, clicks).
4. :mod:`~otus.evaluation.on_dataset` and :mod:`~otus.evaluation.results`: a model's results on a data set, and the same as
   the metrics want them.
5. :mod:`~otus.evaluation.runs`: the images that a training kept aside.
6. :mod:`~otus.evaluation.comparing` and :mod:`~otus.evaluation.thresholds`: predictions beside labels, for all that explains
   figures, and the score thresholds that are best for each category.
"""
