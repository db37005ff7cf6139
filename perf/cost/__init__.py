"""What one recorded op costs on one product, priced from its bytes, FLOPs and links."""
