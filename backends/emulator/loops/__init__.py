"""C loops, and how they are compiled and called; each one's contract stands by its torch twin."""
