"""Region features: what the network sees of a region of the image.

Two ways, and the step between them is what made detectors fast:

- :mod:`~otus.parts.regions.crops`: cut the region out of the image, warp it to a fixed size, run the backbone on the crop
  (sliding window, R-CNN): as many passes as there are regions;
- :mod:`~otus.parts.regions.roi_features`: run the backbone once, cut a piece of fixed size out of its feature maps for each
  region (Fast R-CNN and after): *RoI pooling* takes maxima of whole cells, *RoI align* interpolates.

Both answer the same two calls of the frame: ``prepare(images)`` computes what all regions share (nothing, or feature maps),
``extract(features, batch, boxes)`` the features of each region. SPP-net's pooling is in its own file
(:mod:`otus.detection.region_based.spp_net`). :mod:`~otus.parts.regions.proposals` is the value that proposers return.
"""
