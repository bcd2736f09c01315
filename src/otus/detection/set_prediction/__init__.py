"""Set prediction: the network predicts a set of boxes, one per object, with neither anchors nor NMS.

The idea (DETR, 2020): N queries go through a transformer decoder and each predicts a class, or "no object", and a box. In
training, the predictions and the objects of an image are matched one to one at minimum total cost (the Hungarian
algorithm), so that a second prediction of the same object is a negative: training removes duplicates, not NMS.

==================  =====================  =========================  ================================  =================
system              queries                encoder                    decoder                           matching costs
==================  =====================  =========================  ================================  =================
DETR                learned embeddings     attention, coarsest map    attention to all locations        class, L1, GIoU
query selection     top-scoring locations  the same, then a pyramid   deformable attention, refinement  focal, L1, GIoU
==================  =====================  =========================  ================================  =================

Read in this order: :mod:`otus.parts.transformer.attention`, :mod:`otus.parts.transformer.set_matching`, then
:mod:`~otus.detection.set_prediction.detr`. DETR needs hundreds of epochs; the remedies of its successors are combined in
:mod:`~otus.detection.set_prediction.query_selection_detr`, a composition of five papers that can be trained on few images.
The base detector is :mod:`~otus.detection.set_prediction.set_detector`.
"""
