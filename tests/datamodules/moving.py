"""Frames of a texture that moves by a known number of pixels."""

from __future__ import annotations

import cv2
import numpy as np


def moving_frames(
    count: int, velocity: tuple[int, int], height: int = 96, width: int = 96, seed: int = 0
) -> np.ndarray:
    """(count, height, width, 3) uint8: what is seen moves by ``velocity`` (x, y) pixels a frame."""
    x, y = velocity
    room = count * max(abs(x), abs(y), 1)
    noise = np.random.default_rng(seed).integers(0, 256, (height + 2 * room, width + 2 * room, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    texture = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    return np.stack(
        [texture[room - k * y : room - k * y + height, room - k * x : room - k * x + width] for k in range(count)]
    )
