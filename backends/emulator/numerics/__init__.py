"""Numbers: block formats, fidelity, products and sums of torch tensors with leading mesh dims."""
