"""Whole runs from a config: ``training.train``, ``networks.load_run`` and ``scoring.score``."""
