"""Serving: what is refused before vLLM starts, steps on a fake engine, a real server."""
