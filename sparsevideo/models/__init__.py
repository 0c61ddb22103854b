"""The networks: SparseFormer for images and clips, its published weights, and inflation from image to video."""

from sparsevideo.models import published as published
