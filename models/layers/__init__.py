"""The algebra of the decoder stack; where tensors live and how ops run is said in models/plans.

Shape suffixes: B users, S positions, D model width, F feed-forward width, H query heads,
K key/value heads, W head width times heads, V vocabulary, 1 for a unit axis, all per chip.
"""
