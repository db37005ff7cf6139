"""What a language model is: configs, weights, layers, plans; knows the device only through ttnn."""

from backends import threads  # noqa: F401  (before torch)
