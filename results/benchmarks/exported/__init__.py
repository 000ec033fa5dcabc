"""Benchmarks of exported detectors."""
