"""The categories of Pascal VOC (host.robots.ox.ac.uk/pascal/VOC) as its label images have them: 0 is background."""

from otus.structures import Categories

_NAMES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]

VOC_WITH_BACKGROUND = Categories(("background", *_NAMES), ids=tuple(range(21)))
"""The classes of torchvision's segmentation models."""
