"""The page of the students' speed: its text and the columns of its tables."""

from __future__ import annotations

from results.benchmarks.page import Part

HEADER = """# The students' speed

Written by `make bench`: ViT-B, random weights, frames of {side} x {side} (a student sees one, its teacher a clip of
16), batch 1, fp32 unless it says otherwise, from normalised frame to decoded detections. Milliseconds are medians of
calls in turn; ratios are medians over rounds. GFLOPs count a multiply-add once.
"""
SPEED_NOTE = """
*faster* is relative to the dense teacher's sliding window, which sees a whole clip for every new frame; the last column
is relative to the teacher with keep rate 0.7. "EVAD's head" is the teacher's, on one frame: {num_proposals} proposals,
{num_stages} stages, {decoder_depth} decoder blocks. Each saving is made alone; "as configured" makes all those of
`configs/networks/*_vit_b.yaml`. All students read the eight slots of their teacher's clip, so they have a delay of
seven sampled frames. The cost of each saving in mAP: `results/pages/student_heads.md`.
"""
SIZES_NOTE = """
The networks of `configs/networks/` with their own heads, against the dense ViT-B teacher's clip in PyTorch, in one run,
in turn; an untimed call precedes each timed one, so that the caches hold a network's own weights, as in a stream that
runs alone. Random weights, stride 4 and seven frames late as their configs say. `int8` is what `export --quantize
int8` writes. In the other runtimes a step begins at pixels; in PyTorch it begins at normalised frames. What int8 costs
in mAP: `results/pages/int8.md`. The *limit* is the time that a network's GFLOPs would take at the rate of a large
product of matrices, measured in turn with the rest: {product_gflops:.0f} GFLOP/s (a multiply-add is two operations
there).
"""
PARTS_NOTE = """
The students as configured; a part's time is what its modules took, the rest (position codes, residuals, the memory) is
in the last row but one.
"""
LANES_NOTE = """
Streams in one batch, as configured. Each lane has its own clock: state is renewed and held lane by lane
(`select_lanes`), timed with it.
"""
COMPILED_NOTE = """
`torch.compile` of the step and, where the processor computes it, bf16 autocast and both, against the plain step in
fp32: errors are the largest over 20 frames of a stream, boxes relative to their size, scores as probabilities. All
proposals are read (`num_actors` none): random weights score them so similarly that rounding would decide which are
chosen. Recompilations are those after the second step.
"""
STEADY_NOTE = """
The shipped students of the demo (stride 2, at once) on noise, one stream of 128 x 128: median latency of frames
{young} to {young_to} of one stream and of frames {old} to {old_to} of another, frame by frame in turn; forms take turns
ten times. *Faster* is relative to PyTorch, of the old streams. State and memory of the process after {young} and {old}
frames of the old stream.
"""
PARTS = {
    "speed": Part(
        "Against the teacher",
        SPEED_NOTE,
        {
            "network": lambda row: row["name"],
            "GFLOPs": lambda row: f"{row['gflops']:.1f}",
            "ms": lambda row: f"{row['ms']:.0f}",
            "faster": lambda row: f"{row['faster']:.2f}x",
            "than keep rate 0.7": lambda row: f"{row['faster_than_dropping']:.2f}x",
        },
    ),
    "sizes": Part(
        "Every size, in float32 and int8",
        SIZES_NOTE,
        {
            "network": lambda row: row["name"],
            "form": lambda row: row["form"],
            "ms": lambda row: f"{row['ms']:.0f}",
            "faster": lambda row: f"{row['faster']:.2f}x",
            "of the limit": lambda row: "-" if row["limit_share"] is None else f"{100 * row['limit_share']:.0f} %",
            "file, MB": lambda row: "-" if row["megabytes"] is None else f"{row['megabytes']:.0f}",
        },
    ),
    "parts": Part(
        "Where a step's time goes",
        PARTS_NOTE,
        {
            "part": lambda row: row["part"],
            "TSA, GFLOPs": lambda row: f"{row['tsa_gflops']:.2f}",
            "TSA, ms": lambda row: f"{row['tsa_ms']:.1f}",
            "DSTA, GFLOPs": lambda row: f"{row['dsta_gflops']:.2f}",
            "DSTA, ms": lambda row: f"{row['dsta_ms']:.1f}",
        },
    ),
    "lanes": Part(
        "Several streams at once",
        LANES_NOTE,
        {
            "student": lambda row: row["student"],
            "streams": lambda row: str(row["lanes"]),
            "ms a step": lambda row: f"{row['ms']:.0f}",
            "frames/s": lambda row: f"{row['frames_per_second']:.1f}",
            "state MiB": lambda row: f"{row['state_mib']:.1f}",
        },
    ),
    "compiled": Part(
        "Compiled, and in bf16",
        COMPILED_NOTE,
        {
            "student": lambda row: row["student"],
            "form": lambda row: row["form"],
            "ms": lambda row: f"{row['ms']:.0f}",
            "ratio": lambda row: f"{row['ratio']:.2f}",
            "error boxes / scores": lambda row: f"{row['error_boxes']:.1e} / {row['error_scores']:.1e}",
            "recompilations": lambda row: str(row["recompilations"]),
            "first two steps, s": lambda row: f"{row['first_s']:.0f}",
        },
    ),
    "steady": Part(
        "10,000 frames later",
        STEADY_NOTE,
        {
            "student": lambda row: row["student"],
            "form": lambda row: row["form"],
            "young, ms": lambda row: f"{row['young_ms']:.2f}",
            "old, ms": lambda row: f"{row['old_ms']:.2f}",
            "old / young": lambda row: f"{row['ratio']:.3f}",
            "old, p95": lambda row: f"{row['old_p95_ms']:.2f}",
            "faster": lambda row: f"{row['faster']:.2f}x",
            "state, bytes": lambda row: " -> ".join(f"{count:,}" for count in row["state_bytes"]),
            "memory, MiB": lambda row: " -> ".join(f"{mib:.0f}" for mib in row["memory_mib"]),
        },
    ),
}
