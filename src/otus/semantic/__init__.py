"""Semantic segmentation: the category of every pixel.

A classification network reads one vector of the whole image. A *fully convolutional* one keeps the feature map and
classifies each of its locations, so that an image of any size gets a map of scores, only coarser than the image: every
stage of the backbone that halves the map costs detail, and without them the network would see too little around each pixel
and cost too much. The chapter is about getting the detail back: upsampling (bed of nails, nearest, bilinear, bicubic, max
unpooling, transposed convolution) and the finer maps of the encoder.

Targets are integers (H, W), 255 where nothing is learned or judged; the loss is cross-entropy per pixel, the score mean IoU
over categories. A category is whatever the labels name: background is one only where they say so.

Read :mod:`otus.semantic.fcn`: 1x1 classifiers on three maps of a backbone, summed from coarse to fine.

============  ===================  ==================  ======================
system        encoder              upsampling          what the decoder adds
============  ===================  ==================  ======================
FCN-8s        any backbone         bilinear            scores of finer maps
============  ===================  ==================  ======================
"""
