"""Running a model: settings, tokens, pages, sampling, and the generator that drives an engine."""
