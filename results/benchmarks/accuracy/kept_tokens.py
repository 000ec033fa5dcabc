"""Share of people's and of background's tokens that EVAD's dropout keeps on Puppets.

    python -m results.benchmarks.accuracy.kept_tokens

The shipped teacher looks at clips of `full`, validation. A token outside the keyframe's slot counts as a person's if it
overlaps a person's box in the keyframe. People move little in half a second. Writes ``results/pages/kept_tokens.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from callbacks.benchmark.provenance import device_name
from datamodules.clip import ClipDataModule
from datamodules.files import write_whole
from datamodules.program_help import ProgramParser
from datamodules.puppets import Puppets
from datamodules.settings import KeyframeLoaderSettings
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.weights.configured import network_of
from lightning_modules.networks.weights.loading import load_exactly, read_state_dict
from results.experiments.provenance import commit
from results.tables.markdown import markdown_table

SETTINGS: tuple[tuple[str, Mapping[int, float], float], ...] = (
    ("0.8 in blocks 2, 3, 4", {2: 0.8, 3: 0.8, 4: 0.8}, 1.0),
    ("0.7 in blocks 2, 3, 4", {2: 0.7, 3: 0.7, 4: 0.7}, 1.0),
    ("0.7 in blocks 2, 3, 4, enhanced weight 4", {2: 0.7, 3: 0.7, 4: 0.7}, 4.0),
    ("0.7 in blocks 1, 2, 3", {1: 0.7, 2: 0.7, 3: 0.7}, 1.0),
    ("0.6 in blocks 2, 3, enhanced weight 4", {2: 0.6, 3: 0.6}, 4.0),
)
HEADER = """# What token dropout keeps on Puppets

Written by `python -m results.benchmarks.accuracy.kept_tokens{options}`: the percentage of tokens outside the keyframe's
slot that is left after each block that drops some. It is given for tokens that overlap a person's box in the keyframe,
and for the others. The shipped teacher (trained with keep rate 0.8 in blocks 2, 3 and 4) looks at {clips} clips of
`full`, validation, stride 2. People's boxes cover {share:.0f} % of the tokens.
"""
HEAD = ("keep rate", "people's, %", "background's, %")


def people_tokens(boxes: Sequence[Tensor], grid: tuple[int, int], patch_size: int) -> Tensor:
    """(B, h w) bool: the tokens of a frame that people's boxes overlap; a tensor (M, 4) xyxy in pixels a frame."""
    inside = torch.zeros(len(boxes), *grid, dtype=torch.bool)
    for item, people in enumerate(boxes):
        for left, top, right, bottom in (people / patch_size).tolist():
            rows, columns = slice(max(0, int(top)), math.ceil(bottom)), slice(max(0, int(left)), math.ceil(right))
            inside[item, rows, columns] = True
    return inside.flatten(1)


def kept_of(kept: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of kept tokens and of all tokens: people's and background's, (2,) each.

    kept (B, M) are places over the slots without the keyframe's, people (B, N) bool says what is there.
    """
    is_kept, kinds = torch.zeros_like(people).scatter(1, kept, True), (people, ~people)
    return torch.stack([(is_kept & kind).sum() for kind in kinds]), torch.stack([kind.sum() for kind in kinds])


@torch.no_grad()
def shares(teacher: EvadTeacher, data: ClipDataModule, clips: int) -> tuple[Tensor, float, int]:
    """Return what the dropout leaves in so many clips at least, in whole batches, or in all there are.

    Returns:
        (layers, 2) shares of people's and of background's tokens; people's share of all tokens; the number of clips.
    """
    counts, totals, seen = 0, 0, 0
    for batch in data.val_dataloader():
        frames = normalise_frames(batch.frames, batch.image_sizes)
        encoded = teacher.backbone(frames.transpose(1, 2))
        slots, *grid = encoded.grid
        people = people_tokens(batch.boxes, tuple(grid), teacher.backbone.patch_size).repeat(1, slots - 1)
        layers = [kept_of(kept, people) for kept in encoded.kept_by_layer]
        counts = counts + torch.stack([kept for kept, _ in layers])
        totals = totals + layers[0][1]
        seen += len(frames)
        if seen >= clips:
            break
    return counts / totals, float(totals[0] / totals.sum()), seen


def validation_clips(num_frames: int) -> ClipDataModule:
    """Return the clips that are looked at."""
    return ClipDataModule(Puppets(size="full"), num_frames, 2, loader=KeyframeLoaderSettings(num_workers=0))


def main(args: Sequence[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.accuracy.kept_tokens")
    parser.add_argument("--clips", type=int, default=192, help="how many are looked at, at least (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/pages/kept_tokens.md"))
    arguments = parser.parse_args(args)
    file = Path("configs/networks/evad_tiny.yaml")
    num_frames = network_of(file, num_classes=1).num_frames
    weights = read_state_dict("results/weights/evad.pt")
    data = validation_clips(num_frames)
    data.prepare_data()
    data.setup("validate")
    rows: list[list[str]] = []
    share, seen = 0.0, 0
    for name, keep_rates, enhanced_weight in SETTINGS:
        changes = [f"backbone.keep_rates={dict(keep_rates)}", f"backbone.enhanced_weight={enhanced_weight}"]
        teacher = network_of(file, 10, changes)
        load_exactly(teacher, weights)
        left, share, seen = shares(teacher.eval(), data, arguments.clips)
        people, background = (", ".join(f"{100 * value:.0f}" for value in kind) for kind in left.T)
        rows.append([name, people, background])
        print(*rows[-1], sep="; ", flush=True)
    options = "" if arguments.clips == parser.get_default("clips") else f" --clips {arguments.clips}"
    made = f"\n{device_name(torch.device('cpu'))}, fp32, commit {commit(Path(__file__).parent)}.\n"
    text = HEADER.format(options=options, clips=seen, share=100 * share)
    write_whole(arguments.out, f"{text}\n{markdown_table(HEAD, rows)}\n{made}")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
