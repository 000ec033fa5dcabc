"""Exported detectors in other runtimes than PyTorch, behind the interface of the networks."""
