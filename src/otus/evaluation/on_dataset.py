"""What a system finds on the images of a data set, as the evaluation wants it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from otus.data.dataset import Dataset
from otus.data.prefetching import prefetch
from otus.data.sample import Sample
from otus.data.tensors import TensorSample
from otus.errors import UsageError
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.proposals.cache import ProposedDataset
from otus.proposals.proposers import with_proposals
from otus.structures import Categories, Classification, Instances, Objects, Segmentations, oriented


class FindsInstances(Protocol):
    """What is asked of a system here."""

    categories: Categories
    postprocess: Postprocess | None

    def predict(
        self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None
    ) -> Sequence[Instances | Classification]: ...


def predict_dataset(
    system: FindsInstances,
    dataset: Dataset,
    *,
    preprocess: Preprocess,
    batch_size: int = 4,
    workers: int = 2,
    part: int = 0,
    parts: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Instances]:
    """What a system finds, by index of the image, in the image's own frame, masks at rest.

    Of categories that the data set has not, nothing is reported: it would take places of the limit, and is not judged.
    Batches hold the same images however many parts there are, because padding touches the last digits.

    Parameters
    ----------
    system
        In whatever precision and on whatever device it is.
    preprocess
        How it wants images prepared.
    batch_size
        Images that go through the network together.
    workers
        Threads that load them.
    part, parts
        Batches number ``part``, ``part + parts``, ``part + 2 * parts`` … only.
    progress
        Told after each batch how many images are done.

    Raises
    ------
    UsageError
        If the system answers for whole images, not with objects.
    """
    batches = [range(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]

    postprocess = system.postprocess
    known = tuple(label for label, name in enumerate(system.categories) if name in dataset.categories)
    if postprocess is not None and len(known) < len(system.categories):
        postprocess = replace(postprocess, labels=known)
    dataset = with_proposals(dataset, system)  # type: ignore[arg-type]

    def load(index: int) -> TensorSample:
        columns = {}
        if isinstance(dataset, ProposedDataset):
            image = dataset.image(index)
            columns["proposals_xyxy"] = dataset.proposals.proposals(image).boxes_xyxy
        else:
            image = dataset.image(index, target_size=preprocess.size_of)
        return preprocess.prepare(Sample(image, dataset.images.files[index], columns=columns))

    found = {}
    mine = batches[part::parts]
    for indices, samples in zip(mine, prefetch(mine, load, workers=workers), strict=True):
        for index, instances in zip(indices, system.predict(samples, postprocess=postprocess), strict=True):
            if isinstance(instances, Classification):
                raise UsageError(
                    "model: says what whole images show, not where objects are; evaluate it on images with a category "
                    "each, such as a folder of folders"
                )
            found[index] = _at_rest(preprocess.undo(instances, dataset.images.size_hw(index)))
        if progress is not None:
            progress(len(found))
    return found


def as_objects(found: Mapping[int, Instances], *, categories: Categories) -> Objects:
    """Predictions by index of the image as columns.

    Parameters
    ----------
    found
        With scores.
    categories
        Of the data set. Predictions of a category that it has not are left out.
    """
    several = [(index, _relabelled(found[index], categories)) for index in sorted(found)]
    several = [(index, instances) for index, instances in several if len(instances)]
    if not several:
        return Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    all_instances = [instances for _, instances in several]
    masks = [instances.masks for instances in all_instances]
    keypoints = [instances.keypoints for instances in all_instances]
    turned = [instances.oriented_boxes_xywhr for instances in all_instances]
    return Objects.build(
        image_index=np.repeat([index for index, _ in several], [len(instances) for instances in all_instances]),
        labels=np.concatenate([instances.labels for instances in all_instances]),
        boxes_xyxy=np.concatenate([instances.boxes_xyxy for instances in all_instances]),
        scores=np.concatenate([instances.scores for instances in all_instances if instances.scores is not None]),
        segmentations=Segmentations.build(r["counts"] for m in masks if m is not None for r in m.rle())  # type: ignore[misc]
        if masks[0] is not None
        else None,
        keypoints=np.concatenate([k for k in keypoints if k is not None]) if keypoints[0] is not None else None,
        corners_xy=np.concatenate([oriented.corners(t) for t in turned if t is not None])
        if turned[0] is not None
        else None,
    )


def _at_rest(instances: Instances) -> Instances:
    return instances if instances.masks is None else replace(instances, masks=instances.masks.to_rle())


def _relabelled(instances: Instances, categories: Categories) -> Instances:
    """With labels as another list of categories has them."""
    own = instances.categories
    if own is None or own.names == categories.names:
        return instances
    lookup = np.array([categories.names.index(name) if name in categories.names else -1 for name in own])
    known = instances[lookup[instances.labels] >= 0]
    return replace(known, labels=lookup[known.labels], categories=categories)
