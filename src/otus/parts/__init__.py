"""Building blocks that several systems share, by chapter. A system is a composition of these; no part knows a paper's
system.

Start with :mod:`~otus.parts.system`: the verbs that every trainable system has (``losses``, ``predict``, ``stages``,
``forward``), written once, and the record of a pass. Then, in the order in which an image meets them:

- :mod:`~otus.parts.preprocess`: what happens to an image before the network, and how results come back;
  :mod:`~otus.parts.batching`: images of different sizes in one batch, and training targets;
- :mod:`~otus.parts.backbones`: images in, feature maps out, and the feature pyramid over them;
- :mod:`~otus.parts.boxes`: anchors, box deltas, matching, sampling, NMS, oriented boxes;
- :mod:`~otus.parts.regions`: features of a region, by crops or by RoI pooling;
- :mod:`~otus.parts.heads`: class and box predictions of regions, and of dense feature maps;
- :mod:`~otus.parts.transformer`: attention, positional encodings, the matching of sets;
- :mod:`~otus.parts.losses`, :mod:`~otus.parts.postprocess` (thresholds and NMS), :mod:`~otus.parts.detections`.

:mod:`~otus.parts.fast` holds fast forms for the CPU, which no idea needs. Operators and layers keep torchvision's names and
defaults where it has them, so that its checkpoints load and its documentation applies.
"""
