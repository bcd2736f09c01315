"""The fast forms of operators on a CPU: the same results but for rounding, in less time. Nothing here explains an idea.

Read the idea elsewhere; come here for speed, measured by ``benchmarks/``:

- :mod:`~otus.parts.fast.roi_align`: the gradient of RoI align (the idea: :mod:`otus.parts.regions.roi_features`);
- :mod:`~otus.parts.fast.depthwise`: the gradient of depthwise convolutions (the idea: a convolution with as many groups as
  channels);
- :mod:`~otus.parts.fast.fusion`: a copy of a system for inference, with norms and activations fused into convolutions;
- :mod:`~otus.parts.fast.winograd`: 3x3 convolutions of many channels in that copy (the idea: a convolution).

Each has a readable reference that the tests compare it with. Kernels compiled by numba are in the files that begin with an
underscore.
"""
