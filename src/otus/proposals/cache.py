"""Proposals of a data set: computed once, cached on disk, and part of its samples.

Shape shorthand: P proposals, M images, H x W an image.

A file of the cache is named by a hash of the image's pixels and of the proposer's parameters, and repeats both inside.
A file that is truncated, of another image or of other parameters counts as missing: its proposals are computed again.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from otus._files import staged_file
from otus.data.dataset import Dataset
from otus.data.sample import Sample
from otus.errors import UsageError
from otus.proposals.interface import Proposals, Proposer

if TYPE_CHECKING:
    from otus.data.images import TargetSize


@dataclass(frozen=True)
class ProposalCache:
    """Proposals on disk, by image content and parameters.

    Parameters
    ----------
    folder
        Cache folder; proposers may share it.
    proposer
        Computes missing proposals.
    count
        Number of proposals per image, the highest-scoring first; all if None. Cached files with more are used too.
    """

    folder: Path
    proposer: Proposer
    count: int | None = None

    def path(self, image: UInt8[np.ndarray, "h w 3"]) -> Path:
        """Return the cache file of an image."""
        key = _pixels_key(image)
        return self._parameters_folder / key[:2] / f"{key}.npz"

    def proposals(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals:
        """Return the proposals of an image, from the cache or else computed and stored in it.

        Raises
        ------
        DataError
            If the folder cannot be written to.
        """
        cached = self.read(image)
        if cached is not None:
            return cached
        proposals = self.proposer(image).best(self.count)
        with staged_file(self.path(image)) as stage:
            header = json.dumps({**self._header(image), "count": self.count})
            np.savez(stage, boxes_xyxy=proposals.boxes_xyxy, scores=proposals.scores, header=np.array(header))
        return proposals

    def read(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals | None:
        """Return the cached proposals of an image; None if missing, invalid or too few."""
        try:
            with open(self.path(image), "rb") as stream, np.load(stream, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                cached = Proposals(file["boxes_xyxy"], file["scores"])
                stored_count = header.pop("count")
        except Exception:  # missing or damaged: zipfile raises many kinds of exceptions for damaged files
            return None
        enough = stored_count is None or (self.count is not None and stored_count >= self.count)
        return cached.best(self.count) if enough and header == self._header(image) else None

    def fill(self, dataset: Dataset, *, workers: int = 1, report: Callable[[int, int], object] | None = None) -> None:
        """Compute the missing proposals of a data set; an interrupted run continues where it stopped.

        Parameters
        ----------
        dataset
            The data set.
        workers
            Number of processes. They are spawned, so a script that uses more than one must be importable
            (``if __name__ == "__main__":``).
        report
            Called with the number of images done and the total number.

        Raises
        ------
        DataError
            If an image cannot be read or the folder cannot be written to.
        UsageError
            If the worker processes could not start.
        """
        if workers < 1:
            raise UsageError(f"workers: expected a number >= 1, got {workers}")
        done, total = 0, len(dataset)
        report = report or (lambda done, total: None)
        with ThreadPoolExecutor(workers) as pool:  # decoding and hashing release the GIL
            is_cached = pool.map(lambda index: self.read(dataset.image(index)) is not None, range(total))
            missing = []
            for index, cached in enumerate(is_cached):
                if cached:
                    done += 1
                    report(done, total)
                else:
                    missing.append(index)
        tasks = [(dataset.images.path(index), dataset.images.size_hw(index)) for index in missing]
        workers = min(workers, len(tasks))
        if workers <= 1:
            for task in tasks:
                self._compute(*task)
                done += 1
                report(done, total)
            return
        try:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
                for _ in processes.map(self._compute, *zip(*tasks, strict=True)):
                    done += 1
                    report(done, total)
        except BrokenProcessPool:
            raise UsageError(
                f"workers: one of {workers} processes ended unexpectedly, after {done} of {total} images. Check that there "
                'is enough memory and that the script has an if __name__ == "__main__" guard, or use workers=1'
            ) from None

    def _compute(self, path: Path, size_hw: tuple[int, int]) -> None:
        from otus.data.images import read_image

        self.proposals(read_image(path, expected_size_hw=size_hw))

    @property
    def _parameters_folder(self) -> Path:
        parameters = dict(self.proposer.parameters)
        digest = hashlib.blake2b(json.dumps(parameters, sort_keys=True).encode(), digest_size=6).hexdigest()
        return Path(self.folder) / f"{parameters.get('method', 'proposals')}-{digest}"

    def _header(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, Any]:
        parameters = json.loads(json.dumps(dict(self.proposer.parameters)))  # as read from a file: tuples become lists
        return {"pixels": _pixels_key(image), "parameters": parameters}


@dataclass(frozen=True, eq=False)
class ProposedDataset(Dataset):
    """A data set whose samples have proposals in ``Sample.columns["proposals_xyxy"]``, loaded on access."""

    proposals: ProposalCache = field(kw_only=True)

    @classmethod
    def of(cls, dataset: Dataset, proposals: ProposalCache) -> "ProposedDataset":
        """Return the data set with proposals; missing ones are computed on access."""
        values = {field.name: getattr(dataset, field.name) for field in fields(dataset)}
        return cls(**{**values, "proposals": proposals})

    def __getitem__(self, index: int) -> Sample:
        """Return one sample with its proposals."""
        sample = super().__getitem__(index)
        return self._with_proposals(sample)

    def input(self, index: int, *, target_size: "TargetSize | None" = None) -> Sample:
        """Return one image with its proposals, at its original size, on which proposals are computed."""
        return self._with_proposals(super().input(index))

    def _with_proposals(self, sample: Sample) -> Sample:
        boxes = self.proposals.proposals(sample.image).boxes_xyxy
        return replace(sample, columns={**sample.columns, "proposals_xyxy": boxes})


def _pixels_key(image: UInt8[np.ndarray, "h w 3"]) -> str:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
