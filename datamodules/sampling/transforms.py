"""Random scale, crop, flip and colour of a clip: one draw for all its frames, and boxes that move along."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from datamodules.errors import UserError


@dataclass(frozen=True)
class ClipTransform:
    """Augmentation of the frames and boxes of a clip. Frames keep their size.

    The clip is scaled, then padded with black where it is smaller than its frame and cropped where it is larger. The
    crop is a random one that keeps at least one whole person in sight. Flip and change of colours follow. A box of
    which less than ``min_visibility`` is left by the crop goes.

    Args:
        horizontal_flip: probability of mirroring left and right.
        scale_range: factors between which the scale is drawn; (1, 1) neither scales nor crops.
        brightness: largest change, as a fraction of the range.
        contrast: largest change, as a fraction.
        saturation: largest change, as a fraction. Costs more than all the rest.
        min_visibility: fraction of a box's area.
    """

    horizontal_flip: float = 0.5
    scale_range: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    min_visibility: float = 0.4

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise UserError(f"scale_range must be two positive factors in ascending order, got {self.scale_range}")

    @property
    def recolours(self) -> bool:
        return max(self.brightness, self.contrast, self.saturation) > 0

    @property
    def mirrors_alone(self) -> bool:
        """Return whether it only mirrors: all that maps allow, as the mirror image's maps lie beside them."""
        return self.scale_range == (1.0, 1.0) and not self.recolours

    def mirrors(self, seed: int) -> bool:
        """Return whether a clip of maps is mirrored. Maps draw this alone; for pixels ``__call__`` draws all steps."""
        return float(np.random.default_rng(seed).random()) < self.horizontal_flip

    def __call__(
        self, frames: np.ndarray, boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], seed: int
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Transform one clip; the same seed gives the same result in any process.

        Args:
            frames: (T, H, W, 3) uint8.
            boxes: for each of L keyframes (M, 4) float32, xyxy in pixels.
            labels: for each of L keyframes (M, K).
            seed: any non-negative integer below 2**32.

        Returns:
            The three of them anew, boxes and labels reduced to what is still visible.
        """
        steps = _compose(frames.shape[1], frames.shape[2], *self._settings())
        if steps is None:
            return frames, list(boxes), list(labels)
        steps.set_random_seed(seed)
        owner = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
        flat = np.concatenate(boxes) if boxes else np.empty((0, 4), np.float32)
        # Albumentations returns labels as floats, so a box travels with its row number and is looked up afterwards.
        result = steps(images=frames, bboxes=flat, row=np.arange(len(flat)))
        rows = np.asarray(result["row"], dtype=np.int64)
        moved = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
        all_labels = np.concatenate(labels) if labels else flat
        keyframes = [owner[rows] == index for index in range(len(boxes))]
        return result["images"], [moved[mine] for mine in keyframes], [all_labels[rows[mine]] for mine in keyframes]

    def _settings(self) -> tuple[Any, ...]:
        return (
            self.horizontal_flip,
            self.scale_range,
            self.brightness,
            self.contrast,
            self.saturation,
            self.min_visibility,
        )


def mirrored_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes (M, 4) xyxy as they are in the mirror image of a frame of ``width`` pixels."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


def load_albumentations() -> Any:
    """Import and return the library, which takes a second.

    Data sets call it before their workers are forked: what watches imports, as wandb does, may fail in a worker.
    """
    # On import it otherwise asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


@lru_cache(maxsize=256)
def _compose(
    height: int,
    width: int,
    horizontal_flip: float,
    scale_range: tuple[float, float],
    brightness: float,
    contrast: float,
    saturation: float,
    min_visibility: float,
) -> Any:
    """The steps for frames of one size, built once in a process; None where there is nothing to do."""
    A = load_albumentations()
    steps: list[Any] = []
    if scale_range != (1.0, 1.0):
        steps += [
            A.RandomScale((scale_range[0] - 1, scale_range[1] - 1), p=1),
            A.PadIfNeeded(height, width, position="random"),
            A.AtLeastOneBBoxRandomCrop(height, width),
        ]
    if horizontal_flip > 0:
        steps.append(A.HorizontalFlip(p=horizontal_flip))
    if brightness > 0 or contrast > 0:
        steps.append(A.RandomBrightnessContrast(brightness, contrast, p=1))
    if saturation > 0:
        percent = round(100 * saturation)
        steps.append(A.HueSaturationValue(hue_shift_limit=0, sat_shift_limit=percent, val_shift_limit=0, p=1))
    if not steps:
        return None
    with warnings.catch_warnings():
        # Colour alone moves no box, and says so in a warning.
        warnings.filterwarnings("ignore", message="Got processor for bboxes")
        return A.Compose(
            steps,
            bbox_params=A.BboxParams(
                format="pascal_voc",
                label_fields=["row"],
                min_visibility=min_visibility,
                clip=True,
                filter_invalid_bboxes=True,
            ),
        )
