"""Whole models on the emulator, against HF transformers and against themselves."""
