"""Op lists of real forwards: recorded, kept on disk, shown as text."""
