"""Weights under canonical names, one tensor at a time, whatever file format they came from.

`open_checkpoint` finds the format; names.py is the table of names; weight_cache.py keeps the
converted tensors, so that a second start reads no checkpoint at all.
"""

from models.checkpoints.base import Checkpoint, PlaceholderCheckpoint, expected_shapes
from models.checkpoints.open import locate, open_checkpoint, resolve
from models.checkpoints.shapes import ShapeCheckpoint
from models.checkpoints.synthetic import RandomCheckpoint

__all__ = [
    "Checkpoint",
    "PlaceholderCheckpoint",
    "RandomCheckpoint",
    "ShapeCheckpoint",
    "expected_shapes",
    "locate",
    "open_checkpoint",
    "resolve",
]
