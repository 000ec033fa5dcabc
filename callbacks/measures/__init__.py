"""Measures of cost: operations and latency, as functions and as callbacks for any run."""

from callbacks.measures.monitors import GflopsMonitor, LatencyMonitor

__all__ = ["GflopsMonitor", "LatencyMonitor"]
