"""Live sources: cameras and network streams, the newest frame first."""
