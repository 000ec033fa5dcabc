"""The benchmark table: rows, the file that keeps them, the page that shows the newest of each experiment."""

from callbacks.benchmark.callback import BenchmarkTable

__all__ = ["BenchmarkTable"]
