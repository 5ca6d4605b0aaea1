"""Malformed data files and configs, generated; run by ``benchmarks.malformed_inputs``."""
