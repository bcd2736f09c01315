"""Building blocks that several systems share, by chapter. A system is a composition of these; none of them depends on a
particular system.

Start with :mod:`~otus.parts.system`: the methods that every trainable system has (``losses``, ``predict``, ``stages``,
``forward``), implemented once, and the record of a forward pass. Then, in the order in which an image meets them:

- :mod:`~otus.parts.preprocess`: normalisation and resizing of an image, and results mapped back to it;
  :mod:`~otus.parts.batching`: images of different sizes in one batch, and training targets;
- :mod:`~otus.parts.backbones`: images in, feature maps out, and the feature pyramid over them;
- :mod:`~otus.parts.boxes`: anchors, box deltas, matching, sampling, NMS, oriented boxes;
- :mod:`~otus.parts.regions`: features of a region, by crops or by RoI pooling;
- :mod:`~otus.parts.heads`: class and box predictions of regions, and of dense feature maps;
- :mod:`~otus.parts.transformer`: attention, positional encodings, set matching;
- :mod:`~otus.parts.losses`, :mod:`~otus.parts.postprocess` (thresholds and NMS), :mod:`~otus.parts.detections`.

:mod:`~otus.parts.fast` holds faster CPU implementations, which can be skipped on a first reading. Operators and layers keep
torchvision's names and defaults where it has them, so that its checkpoints load and its documentation applies.
"""
