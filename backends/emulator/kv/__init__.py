"""Which rows of a paged cache are read and written, and which chips' caches hold the same."""
