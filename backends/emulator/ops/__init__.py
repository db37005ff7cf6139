"""One function per TT-NN op; importing a module registers its functions.

Data is [mesh rows, mesh columns, ...] with either mesh dim 1 where chips agree. Shape suffixes are
those of models/layers.
"""
