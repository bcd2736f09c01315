"""Fast CPU implementations of operators: the same results up to rounding, in less time.

Nothing here is needed to understand a model; the speed is measured in ``benchmarks/``:

- :mod:`~otus.parts.fast.roi_align`: the gradient of RoI align (explained in :mod:`otus.parts.regions.roi_features`);
- :mod:`~otus.parts.fast.depthwise`: the gradient of depthwise convolutions (as many groups as channels);
- :mod:`~otus.parts.fast.fusion`: a copy of a system for inference, with norms and activations fused into convolutions;
- :mod:`~otus.parts.fast.winograd`: 3x3 convolutions of many channels in that copy.

Tests compare each with a readable reference. Kernels compiled by numba are in the files whose names begin with an
underscore.
"""
