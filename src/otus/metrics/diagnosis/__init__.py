"""Why AP is what it is, for the predictions of one model or of two.

Everything starts from :mod:`.assignment`: which ground truth each detection is matched to, by any
:class:`~otus.metrics.detection.rules.Rules`. From it:

- :mod:`.tide`: the type of each error (classification, localisation, both, duplicate, background, missed), and its dAP, the
  AP that fixing all of the type gains;
- :mod:`.confusion`: the confusion matrix with background, matched class-agnostically;
- :mod:`.thresholds`: precision, recall and F1 by score, the best score threshold per category, and the effect of NMS;
- :mod:`.calibration`: reliability bins, ECE and MCE of the scores;
- :mod:`.label_errors`: labels that are probably wrong, and the images with most mistakes;
- :mod:`.mismatches`: image or category ids that do not fit the data set, before a figure near 0 is believed;
- :mod:`.difference`: two protocols on the same predictions, one rule changed after the other;
- :mod:`.bootstrap`: two models on the same images, with confidence intervals.
"""
