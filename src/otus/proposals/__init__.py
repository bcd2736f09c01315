"""Region proposals: boxes that may contain objects, before anything is classified.

A sliding window classifies every location, scale and aspect ratio. Selective Search reduces that to about 2,000 boxes per
image: over-segment the image (Felzenszwalb and Huttenlocher), then merge the two most similar neighbouring regions until one
is left; the bounding box of every region of this hierarchy is a proposal. Several colour spaces, scales and similarities
make it robust. R-CNN, SPP-net and Fast R-CNN classify these boxes; Faster R-CNN replaces them by a learned region proposal
network.

Reading order:

1. :mod:`~otus.proposals.interface`: :class:`~otus.proposals.interface.Proposals` and the interface of a proposer.
2. :mod:`~otus.proposals.windows`: sliding windows.
3. :mod:`~otus.proposals.colour`, :mod:`~otus.proposals.oversegmentation`: colour spaces, and the initial regions.
4. :mod:`~otus.proposals.selective_search`: hierarchical grouping, as a readable reference and as compiled kernels.
5. :mod:`~otus.proposals.cache`, :mod:`~otus.proposals.methods`: proposals of a data set cached on disk; methods by name
   (``otus propose``).
6. :mod:`~otus.proposals.proposers`: the proposers of region-based detectors; the only module here that imports torch.

All but the last need neither torch nor trained weights. The ``_…_kernels`` modules are compiled (numba) and private.
"""
