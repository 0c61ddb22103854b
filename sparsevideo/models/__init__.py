"""The networks: SparseFormer for images and clips, its published weights, and the way from one to the other."""

from sparsevideo.models import published as published
