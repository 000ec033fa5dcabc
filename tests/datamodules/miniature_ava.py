"""AVA in miniature: a few seconds of two numbered films behind annotations in AVA's own forms."""

from __future__ import annotations

from pathlib import Path

from tests.datamodules.miniature import write_pictures

SCORED = {1: "bend/bow (at the waist)", 12: "stand", 17: "carry/hold (an object)", 80: "watch (a person)"}
"""Ids with holes, as in the list of the challenge."""


def write_ava(root: Path, seconds: int = 4, frame_rate: int = 10) -> Path:
    """``one`` (training) as PySlowFast names pictures, ``two`` (validation) as mmaction2 does, from second 900 on.

    Seconds 902 and later are annotated, each with a person who stands (12) and crawls (2, which is not scored) and one
    who bends (1).
    """
    count = seconds * frame_rate
    write_pictures(root / "frames" / "one", count, "one_{:06d}.jpg")
    write_pictures(root / "frames" / "two", count, "img_{:05d}.jpg")
    annotations = root / "annotations"
    annotations.mkdir()
    entries = [f'item {{\n  name: "{name}"\n  id: {action}\n}}\n' for action, name in SCORED.items()]
    (annotations / "scored.pbtxt").write_text("".join(entries))
    for split, name in (("train", "one"), ("val", "two")):
        rows = []
        for second in range(902, 900 + seconds):
            box = f"{name},{second:04d},0.125,0.250,0.375,0.750"
            rows += [f"{box},12,0", f"{box},2,0", f"{name},{second:04d},0.500,0.250,0.875,1.000,1,1"]
        (annotations / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (annotations / "excluded.csv").write_text("two,0903\none,0902\n")
    return root


def arguments(root: Path) -> dict[str, str | float]:
    """Arguments of ``Ava`` for the miniature."""
    return {
        "videos": str(root / "frames"),
        "label_map": str(root / "annotations" / "scored.pbtxt"),
        "train": str(root / "annotations" / "train.csv"),
        "val": str(root / "annotations" / "val.csv"),
        "excluded": str(root / "annotations" / "excluded.csv"),
        "frame_rate": 10.0,
    }
