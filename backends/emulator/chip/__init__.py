"""What a chip is: its memories, the tensors in them, the mesh it belongs to."""
