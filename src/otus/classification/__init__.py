"""Image classification: which of C categories does the image show? The first detectors are built on it.

A backbone computes a feature map of the image, a few layers compute C class logits from it, and a softmax makes them
probabilities; training minimises the cross-entropy. The location of the object is not predicted. But a classifier of
*crops* is a detector: run it on every window (:mod:`otus.detection.region_based.sliding_window`) or on proposals
(:mod:`otus.detection.region_based.rcnn`). Therefore images with boxes are trained on crop by crop here, and detectors can
be initialised from the weights.

==================  ====================  ===================================================
system              backbone              head
==================  ====================  ===================================================
VGG-16              VGG-16                two fully connected layers of 4096, then C scores
EfficientNet-Lite0  EfficientNet-Lite0    1x1 convolution to 1280 channels, mean, C scores
==================  ====================  ===================================================

Read :mod:`~otus.classification.classifier`; the metrics are in :mod:`otus.metrics.classification`.
"""
