"""Transformers for detection: attention, positional encodings, and bipartite matching.

Read in this order:

1. :mod:`~otus.parts.transformer.attention`: multi-head attention, softmax(Q K^T / sqrt(d)) V;
2. :mod:`~otus.parts.transformer.positional_encodings`: attention is permutation-invariant, so encodings of the positions
   of locations or boxes are added to queries and keys;
3. :mod:`~otus.parts.transformer.encoder`: self-attention over the locations of a feature map;
4. :mod:`~otus.parts.transformer.set_matching`: the one-to-one matching of predictions and objects, and box losses;
5. :mod:`~otus.parts.transformer.deformable_attention`: each query samples a few points instead of all locations;
6. :mod:`~otus.parts.transformer.denoising`: noised ground truth as additional queries, so that training converges faster.

Shapes are (batch, sequence, channels). Attention masks are True where a key may be attended to, as in
``torch.nn.functional.scaled_dot_product_attention`` (``torch.nn.MultiheadAttention`` has the opposite convention). Boxes
are cxcywh, normalised by the image's size.
"""
