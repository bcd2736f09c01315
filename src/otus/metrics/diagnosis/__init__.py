"""Explain AP, for the predictions of one model or of two.

All start from :mod:`.assignment`: the ground truth that each detection is matched to, by any
:class:`~otus.metrics.detection.rules.Rules`:

- :mod:`.tide`: the type of each error (classification, localisation, both, duplicate, background, missed), and its dAP, the
  gain in AP from fixing all errors of the type;
- :mod:`.confusion`: the confusion matrix with background, matched class-agnostically;
- :mod:`.thresholds`: precision, recall and F1 by score, the best score threshold per category, and the effect of NMS;
- :mod:`.calibration`: reliability bins, ECE and MCE of the scores;
- :mod:`.label_errors`: labels that are probably wrong, and the images with the most errors;
- :mod:`.mismatches`: image or category ids that do not match the data set, a common cause of figures near 0;
- :mod:`.difference`: the difference between two protocols on the same predictions, rule by rule;
- :mod:`.bootstrap`: the difference between two models on the same images, with confidence intervals.
"""
