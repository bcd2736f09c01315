"""Interactive segmentation: a person marks a little, a mask comes back. No weights are needed."""
