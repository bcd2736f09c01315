"""Image classification: which of C categories does the image show? The ground on which the first detectors stand.

A backbone turns the image into a feature map, a few layers turn that into C scores, a softmax into probabilities; training
minimises their cross-entropy. Nothing says where the object is. But a classifier of *crops* is a detector: run it on every
window (:mod:`otus.detection.region_based.sliding_window`) or on proposals (:mod:`otus.detection.region_based.rcnn`). So
images with boxes are learned here crop by crop, and detectors can start from the weights.

==================  ====================  ===================================================
system              backbone              head
==================  ====================  ===================================================
VGG-16              VGG-16                two fully connected layers of 4096, then C scores
EfficientNet-Lite0  EfficientNet-Lite0    1x1 convolution to 1280 channels, mean, C scores
==================  ====================  ===================================================

Read :mod:`~otus.classification.classifier`; how it is judged is :mod:`otus.metrics.classification`.
"""
