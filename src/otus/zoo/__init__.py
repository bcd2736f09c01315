"""The models by name, and their weights: packaged, published, or from a file.

- :mod:`~otus.zoo.models`: the table of names: builder, task, paper, preprocessing, published weights. A name without trained
  weights never predicts: it says train or fetch;
- :mod:`~otus.zoo.weights`: weights of whatever origin, by name or from a file;
- :mod:`~otus.zoo.checkpoint`: our format, one safetensors file with a JSON header, and the safe reading of other people's
  (nothing is ever unpickled but tensors);
- :mod:`~otus.zoo.torchvision_checkpoints`, :mod:`~otus.zoo.torchvision_dense_checkpoints`,
  :mod:`~otus.zoo.detr_checkpoints`, :mod:`~otus.zoo.sam_checkpoints`: official checkpoints under our names, with outputs
  equal to the reference's;
- :mod:`~otus.zoo.hub`: fetching, once, into the user's cache, never silently;
- :mod:`~otus.zoo.coco`: COCO's categories; :mod:`~otus.zoo.catalogue`: what ``otus models`` prints.

``packaged/`` holds the weights that come with the package, each with a model card.
"""
