"""Data: from files on disk to the tensors that a system trains on.

An annotated image has three forms, and each conversion has one place::

    files  --formats-->  Dataset (numpy columns)  --dataset[i]-->  Sample (numpy)  --tensors-->  tensor sample (torch)

A *format* reads COCO, Pascal VOC, YOLO … into a :class:`~otus.data.dataset.Dataset`: images, categories, and all objects
as columns, so that a million objects are a handful of arrays. Coordinates become continuous pixels xyxy, labels become
0..C-1; images are decoded only on access. ``dataset[i]`` decodes one image to a
:class:`~otus.data.sample.Sample`. Only :mod:`~otus.data.tensors` turns it into torch, where augmentations apply.

Reading order:

1. :mod:`~otus.data.sample`, :mod:`~otus.data.dataset`: the two values that everything else fills.
2. :mod:`~otus.data.open`, :mod:`~otus.data.formats`: recognise and read the data set at a path.
3. :mod:`~otus.data.images` (over :mod:`~otus.data.image_decoding`), :mod:`~otus.data.image_files`,
   :mod:`~otus.data.image_writing`, :mod:`~otus.data.video`, :mod:`~otus.data.sources`: pixels, from any file to uint8
   RGB; what ``predict`` iterates over.
4. :mod:`~otus.data.tensors`, :mod:`~otus.data.transforms`, :mod:`~otus.data.prefetching`: training samples.
5. :mod:`~otus.data.splitting`, :mod:`~otus.data.merging`, :mod:`~otus.data.conversion`: data sets made of others.
6. :mod:`~otus.data.checks`: ``otus doctor``; :mod:`~otus.data.scenes`: synthetic data with complete ground truth.
"""
