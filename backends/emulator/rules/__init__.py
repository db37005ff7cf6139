"""What TT-NN refuses, and where it puts results; one file for each family of ops."""
