"""Annotation formats: one module each, with the same three functions.

``find(path)`` recognises data sets cheaply, ``read(layout)`` returns a :class:`~otus.data.dataset.Dataset`,
``write(datasets, folder)`` exports one and returns what the format could not hold (see
:mod:`~otus.data.formats.interface`). Readers report each problem with file and record and go on; by default the first
one is raised.

==========================  ==================================================  =====
format                      annotations                                         write
==========================  ==================================================  =====
``coco``                    boxes, polygons, RLE, crowds, keypoints             yes
``coco_panoptic``           segments of things and stuff                        yes
``voc``                     boxes, object masks, semantic maps                  yes
``yolo``                    boxes, polygons, oriented boxes, keypoints          yes
``labelme``                 polygons, masks, boxes, keypoints                   yes
``sa1b``                    class-agnostic masks                                yes
``cvat``                    boxes, oriented boxes, polygons, masks              no
``label_studio``            boxes, oriented boxes, polygons                     no
``dota``                    oriented boxes                                      no
``kitti``                   boxes, cuboids, ignore regions                      no
``index_png``               semantic maps                                       no
``classification_folders``  a label per image                                   no
==========================  ==================================================  =====

Reading order: :mod:`~otus.data.formats.interface`; :mod:`~otus.data.formats.kitti`, the shortest reader of objects;
:mod:`~otus.data.formats.coco` with :mod:`~otus.data.formats.coco_annotations`, which reads files of any size through
:mod:`~otus.data.formats.json_reader`; :mod:`~otus.data.formats.conversion_losses`, shared by all writers. Predictions are
read by the modules named ``*_results``.
"""
