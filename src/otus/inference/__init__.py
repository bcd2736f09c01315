"""From an image in any form to results in its own pixels.

A trained network answers for images prepared as in its training: resized, normalised, padded into a batch. What people have
are files, folders, videos and arrays, and what they want are boxes and masks in the pixels of what they gave. Everything
between the two stands here, and stands here once: whoever predicts (a person, an evaluation, the validation of a training, a
comparison, an explanation) takes the same path, so that all of them speak of the same results.

Read in this order:

1. :mod:`~otus.inference.pipeline`: the path itself. Prepare a sample (with proposals where the system looks at some), run
   the system in its precision, undo the geometry.
2. :mod:`~otus.inference.predictor`: a system with its preprocessing, thresholds and device; any source in, predictions out
   one by one.
3. :mod:`~otus.inference.prediction`: what was found on one image; drawn, told and written down as its task says.
4. :mod:`~otus.inference.tiling`: small objects on large images, by overlapping tiles whose detections are merged.
5. :mod:`~otus.inference.loading`: ``otus.load``, a predictor from a name, a checkpoint or the folder of a run.
6. :mod:`~otus.inference.region_proposals`: what a region proposal network proposes, before anything is classified.
7. :mod:`~otus.inference.export`: a system's ``forward`` as a file of ONNX or OpenVINO, checked against the system;
   :mod:`~otus.inference.exported` predicts with it, :mod:`~otus.inference.runtimes` runs it, and
   :mod:`~otus.inference.acceleration` runs the heavy parts of a system so.
"""
