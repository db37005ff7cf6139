"""The vision tower: patches of an image's tiles to the states that the text stack looks at.

R rows of all tiles of one image (tokens, then padding), D the tower's width. Start with encoder.py.
"""
