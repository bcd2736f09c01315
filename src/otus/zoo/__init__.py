"""The models by name, and their weights: packaged, published, or from a file.

- :mod:`~otus.zoo.models`: the table of models: builder, task, paper, preprocessing, published weights. A model without
  trained weights is never used for prediction; the error says how to train it or where to get weights;
- :mod:`~otus.zoo.weights`: weights of any origin, by name or from a file;
- :mod:`~otus.zoo.checkpoint`: the format of Otus, one safetensors file with a JSON header, and safe reading of weights of
  other libraries (only tensors are unpickled);
- :mod:`~otus.zoo.torchvision_checkpoints`, :mod:`~otus.zoo.torchvision_dense_checkpoints`,
  :mod:`~otus.zoo.torchvision_segmentation_checkpoints`, :mod:`~otus.zoo.detr_checkpoints`,
  :mod:`~otus.zoo.sam_checkpoints`: official checkpoints converted to the parameter names of Otus, with outputs equal to
  the reference implementation;
- :mod:`~otus.zoo.hub`: download into the user's cache, once, never silently;
- :mod:`~otus.zoo.coco`, :mod:`~otus.zoo.voc`: the categories of COCO and VOC; :mod:`~otus.zoo.catalogue`: the table that
  ``otus models`` prints.

The folder ``packaged/`` holds the weights that are part of the package, each with a model card.
"""
