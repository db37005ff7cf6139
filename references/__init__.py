"""What HF transformers says about known texts, recorded once and compared with ever after."""

from backends import threads  # noqa: F401  (before torch)
