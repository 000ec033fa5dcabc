"""Networks that find actions in time: backbones, heads, detectors, and what joins them."""
