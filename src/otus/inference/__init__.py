"""Inference: from images in any form to results in their pixels.

A network is run on images that are preprocessed as in its training: resized, normalised, padded to a batch. Users have
files, folders, videos and arrays, and want boxes and masks in the pixels of these. Everything between the two is implemented
here, once: prediction, evaluation, validation in training, comparisons and explanations share one pipeline, so their results
agree.

Read in this order:

1. :mod:`~otus.inference.pipeline`: preprocess samples (with external proposals if the system needs them), run the system in
   its precision, and map results back to the image.
2. :mod:`~otus.inference.predictor`: a system with its preprocessing, thresholds and device; it yields predictions for any
   source. :mod:`~otus.inference.image_prediction` predicts a batch of images, or one image in tiles;
   :mod:`~otus.inference.devices` chooses device and precision.
3. :mod:`~otus.inference.prediction`: the prediction for one image, with drawing, summary and export.
4. :mod:`~otus.inference.tiling`: small objects on large images, by overlapping tiles whose detections are merged;
   :mod:`~otus.inference.blending`: the same for semantic segmentation; :mod:`~otus.inference.averaging`: test-time
   augmentation; :mod:`~otus.inference.panoptic_pair`: panoptic segmentation by an instance model and a semantic model.
5. :mod:`~otus.inference.loading`: ``otus.load``, a predictor from a name, a checkpoint or the folder of a run;
   :mod:`~otus.inference.promptable`: the same for promptable methods; :mod:`~otus.inference.mask_folders`: automatic mask
   generation for many images.
6. :mod:`~otus.inference.region_proposals`: the proposals of a region proposal network.
7. :mod:`~otus.inference.export`: export a system to ONNX or OpenVINO, checked against the system;
   :mod:`~otus.inference.promptable_export`: the same for encoder and decoder of a promptable model;
   :mod:`~otus.inference.exported` predicts with the file, :mod:`~otus.inference.runtimes` runs it, and
   :mod:`~otus.inference.acceleration` runs only the heavy parts of a system in another runtime.
"""
