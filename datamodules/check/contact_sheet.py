"""A page of annotated clips, to see at a glance whether boxes sit where they should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules.annotations.mistakes import UNREADABLE, Mistake
from datamodules.batches import ClipBatch
from datamodules.errors import UserError
from datamodules.frames.store import FrameStore
from datamodules.sampling.windows import TimedVideo, Window, WindowDataset
from datamodules.video.listing import VideoError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

SEED = 0
HEIGHT = 144
"""Pixels that every frame is drawn high."""
CAPTION, GAP, SEAM = 17, 6, 2
COLUMNS = 2
FONT_SIZE = 12


def require_picture_ending(page: Path) -> None:
    """Refuse a page whose ending names no kind of picture, before anything is drawn."""
    from PIL import Image

    if page.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"is no name of a picture: {page.suffix or 'it has no ending'}", page, "call it something.png")


def draw_contact_sheet(
    videos: Mapping[str, Sequence[TimedVideo]],
    store: FrameStore,
    class_names: Sequence[str],
    stride: int,
    num_clips: int,
    mistakes: list[Mistake],
) -> Image.Image | None:
    """Draw keyframes of different videos that show many classes, each between the sampled frames before and after it.

    Frames and boxes are those of ``WindowDataset``, as networks are trained on them, without augmentation. Videos that
    cannot be decoded there are put down in ``mistakes``, and others are drawn.

    Args:
        videos: those of each split.
        store: where frames come from.
        class_names: names of the K classes.
        stride: raw frames from one frame of a strip to the next.
        num_clips: how many strips at most.

    Returns:
        The page, or None where no video has a box.
    """
    flat = [video for of_split in videos.values() for video in of_split]
    splits = [split for split, of_split in videos.items() for _ in of_split]
    window = Window(past=2, future=1, stride=stride)
    strips: list[Image.Image] = []
    broken: set[int] = set()
    for number, frame in choose_keyframes(flat, len(class_names)):
        if len(strips) == num_clips:
            break
        if number in broken:
            continue
        try:
            batch = WindowDataset(flat, np.asarray([[number, frame]]), window, len(class_names), store)[0]
        except VideoError as error:
            mistakes.append(Mistake(UNREADABLE, str(error)))
            broken.add(number)
            continue
        seconds = float(batch.timestamps[0, 0])
        caption = f"{splits[number]}: {batch.video_ids[0]}, {seconds:.2f} s, and {stride} frames before and after"
        strips.append(draw_strip(batch, class_names, caption))
    return arrange(strips) if strips else None


def choose_keyframes(videos: Sequence[TimedVideo], num_classes: int) -> Iterator[tuple[int, int]]:
    """Keyframes with boxes as (video, raw frame), those that show most new and rare classes first, each video once.

    Then all videos once more, until every keyframe has been named; always in the same order.
    """
    generator = np.random.default_rng(SEED)
    left = {
        int(number): [position for position, boxes in enumerate(videos[number].boxes) if len(boxes)]
        for number in generator.permutation(len(videos))
    }
    shown = {number: _classes(videos[number], positions, num_classes) for number, positions in left.items()}
    # A new class counts more than none; of two, the rarer.
    worth = 1 + 1 / np.maximum(sum((rows.sum(axis=0) for rows in shown.values()), np.zeros(num_classes)), 1)
    while any(left.values()):
        seen = np.zeros(num_classes, bool)
        waiting = [number for number, positions in left.items() if positions]
        while waiting:
            gains = [(shown[number] & ~seen) @ worth for number in waiting]
            best = int(np.argmax([gain.max() for gain in gains]))
            number = waiting.pop(best)
            row = int(generator.choice(np.flatnonzero(gains[best] == gains[best].max())))
            seen |= shown[number][row]
            yield number, int(videos[number].frames[left[number].pop(row)])
            shown[number] = np.delete(shown[number], row, axis=0)


def _classes(video: TimedVideo, positions: Sequence[int], num_classes: int) -> np.ndarray:
    """(n, K) bool, which classes these keyframes show."""
    rows = [video.labels[position].any(axis=0) for position in positions]
    return np.asarray(rows, bool).reshape(-1, num_classes)


def draw_strip(batch: ClipBatch, class_names: Sequence[str], caption: str) -> Image.Image:
    """The frames of a batch of one clip side by side, boxes on its keyframe, the caption below."""
    from PIL import Image, ImageDraw

    height, width = batch.image_sizes[0].tolist()
    scale = HEIGHT / height
    shown = max(1, round(width * scale))
    frames = batch.frames[0, :, :, :height, :width].permute(0, 2, 3, 1).numpy()
    strip = Image.new("RGB", (len(frames) * (shown + SEAM) - SEAM, HEIGHT + CAPTION), "white")
    for index, frame in enumerate(frames):
        picture = Image.fromarray(frame).resize((shown, HEIGHT), Image.Resampling.BICUBIC)
        if index == batch.keyframes[0]:
            _draw_boxes(ImageDraw.Draw(picture), picture.size, scale, batch, class_names)
        strip.paste(picture, (index * (shown + SEAM), 0))
    ImageDraw.Draw(strip).text((2, HEIGHT + 1), caption, fill="black", font=_font())
    return strip


def _draw_boxes(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], scale: float, batch: ClipBatch, class_names: Sequence[str]
) -> None:
    width, height = size
    # Kept in the picture, so that every box shows an edge.
    corners = (batch.boxes[0].double() * scale).round().numpy().clip(0, [width - 1, height - 1] * 2)
    found = [row.nonzero().flatten().tolist() for row in batch.labels[0]]
    for box, classes in zip(corners.tolist(), found, strict=True):
        colour = _colour(classes[0], len(class_names)) if classes else (90, 90, 90)
        draw.rectangle([min(box[0], box[2]), min(box[1], box[3]), *map(max, box[:2], box[2:])], None, colour, 2)
        text = "\n".join(class_names[index] for index in classes) or "no action"
        _, _, right, bottom = draw.textbbox((0, 0), text, font=_font(), spacing=1)
        x = max(0, min(box[0], width - right - 4))
        y = max(0, min(box[1] - bottom - 2, height - bottom - 2))
        draw.rectangle([x, y, x + right + 3, y + bottom + 2], colour)
        draw.text((x + 2, y), text, fill="white", font=_font(), spacing=1)


def _colour(index: int, count: int) -> tuple[int, int, int]:
    from PIL import ImageColor

    return ImageColor.getrgb(f"hsl({round(360 * index / count)}, 85%, 38%)")


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(FONT_SIZE)


def arrange(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips in two columns."""
    from PIL import Image

    width, height = (max(strip.size[side] for strip in strips) for side in (0, 1))
    columns = min(COLUMNS, len(strips))
    rows = -(-len(strips) // columns)
    page = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, strip in enumerate(strips):
        row, column = divmod(index, columns)
        page.paste(strip, (column * (width + GAP), row * (height + GAP)))
    return page
