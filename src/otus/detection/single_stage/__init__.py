"""Single-stage detection: every anchor, cell or location of the feature maps predicts a class and a box, in one pass.

Without proposals, nearly all of thousands of predictions are background. The systems differ in how they handle this class
imbalance: a balanced sample, hard negatives, a focal loss, or a grid so coarse that it hardly occurs.

===============  ====================  ==============================  ====================  ==========================
system           anchors               head                            assigner              criterion
===============  ====================  ==============================  ====================  ==========================
RPN classifier   grid anchors          one convolution, softmax        IoU 0.7 / 0.3         256 sampled anchors
SSD              default boxes         one convolution per map         IoU 0.5, best box     hard negatives, 3 to 1
SSDLite          default boxes         depthwise separable             IoU 0.5, best box     hard negatives, 3 to 1
RetinaNet        grid anchors          two towers, sigmoid             IoU 0.5 / 0.4         focal loss, L1 or GIoU
FCOS             locations             two towers, centre-ness         inside, by size       focal loss, GIoU
oriented FCOS    locations             two towers, centre-ness         inside, by size       focal loss, Gaussians
===============  ====================  ==============================  ====================  ==========================

All are a :class:`~otus.detection.single_stage.dense_detector.DenseDetector`, whose parts (feature extractor, head, anchors,
assigner, box coder, criterion, candidate scores) are described in :mod:`~otus.detection.single_stage.interfaces`.
YOLO (version 1) predicts from fully connected layers and is a separate system.

Read in this order: :mod:`~otus.detection.single_stage.rpn_classifier` (is the second stage needed?),
:mod:`~otus.detection.single_stage.yolo`, :mod:`~otus.detection.single_stage.ssd`,
:mod:`~otus.detection.single_stage.ssdlite`, :mod:`~otus.detection.single_stage.retinanet`,
:mod:`~otus.detection.single_stage.fcos`, :mod:`~otus.detection.single_stage.oriented_fcos`.
"""
