"""Features of regions of an image, computed from crops or by RoI pooling.

There are two methods, and the step from the first to the second made region-based detectors fast:

- :mod:`~otus.parts.regions.crops`: cut the region out of the image, warp it to a fixed size, run the backbone on the crop
  (sliding window, R-CNN): one forward pass per region;
- :mod:`~otus.parts.regions.roi_features`: run the backbone once per image, and pool features of fixed size from its
  feature maps for each region (Fast R-CNN and later): *RoI pooling* takes maxima over bins, *RoI align* interpolates.

Both have the same two methods: ``prepare(images)`` computes what all regions share (nothing, or feature maps),
``extract(maps, batch, boxes)`` the features of each region. SPP-net's pooling is in its own file
(:mod:`otus.detection.region_based.spp_net`). :mod:`~otus.parts.regions.proposals` is the value that proposers return.
"""
