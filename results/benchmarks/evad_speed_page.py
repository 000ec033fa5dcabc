"""The page of EVAD's speed: its text and the columns of its tables."""

from __future__ import annotations

from results.benchmarks.page import Part

HEADER = """# EVAD's speed

Written by `make bench-evad`: ViT-B, random weights, one clip of 16 x {side} x {side}, batch 1, seed 0.

*Published arithmetic* is `results/benchmarks/naive_evad.py`: plain torch with the operations of the published
implementation and the same outputs. Times are medians of calls in turn; a ratio is the median over rounds of ours over
the published arithmetic's in the same round. Errors are against the published arithmetic in fp32: boxes relative to
their size, actions as probabilities.

The *limit* is the time that the published GFLOPs would take at the rate of a large matrix product, measured in turn
with the rest (a multiply-add is two operations there). On a CPU there are two such rates in fp32: that of torch's own
product (MKL), which the published arithmetic uses, and that of oneDNN, to which our linear layers go; hence two shares.
"""
FORWARD_NOTE = """
Products run at {product_gflops:.0f} (fp32, torch's own), {onednn_gflops:.0f} (fp32, as our linear layers) and
{product_bf16_gflops:.0f} (bf16) GFLOP/s here; `nan` where the processor has no bf16.
"""
TRAINING_NOTE = """
fp32, deep supervision, two people in the clip.
"""
MODES_NOTE = """
Against the plain network in fp32. The error of the gradients is the norm of their difference over their norm.
"""

FORWARD = {
    "keep rate": lambda row: row["setting"],
    "published arithmetic, s": lambda row: f"{row['published_s']:.2f}",
    "ours, s": lambda row: f"{row['ours_s']:.2f}",
    "ratio": lambda row: f"{row['ratio']:.3f}",
    "limit, ratio": lambda row: f"{row['limit_ratio']:.3f}",
    "share of the limit, torch / oneDNN": lambda row: (
        f"{100 * row['limit_share']:.0f} % / {100 * row['onednn_limit_share']:.0f} %"
    ),
    "error boxes / actions": lambda row: f"{row['error_boxes']:.1e} / {row['error_actions']:.1e}",
    "ours bf16, s": lambda row: f"{row['bf16_s']:.2f}",
    "bf16 ratio": lambda row: f"{row['bf16_ratio']:.3f}",
    "share of the bf16 limit": lambda row: f"{100 * row['bf16_limit_share']:.0f} %",
    "bf16 error boxes / actions": lambda row: f"{row['bf16_error_boxes']:.1e} / {row['bf16_error_actions']:.1e}",
    "peak MiB published / ours": lambda row: f"{row['published_mib']:.0f} / {row['ours_mib']:.0f}",
}
TRAINING = {
    "keep rate": lambda row: row["setting"],
    "blocks recomputed": lambda row: "yes" if row["recompute"] else "no",
    "forward and backward, s": lambda row: f"{row['seconds']:.2f}",
    "faster than keep rate 1": lambda row: f"{row['faster_than_keep_1']:.2f}x",
    "peak MiB": lambda row: f"{row['mib']:.0f}",
}
MODES_TABLE = {
    "keep rate": lambda row: row["setting"],
    "mode": lambda row: row["mode"],
    "forward, ratio": lambda row: f"{row['forward_ratio']:.3f}",
    "forward and backward, ratio": lambda row: f"{row['training_ratio']:.3f}",
    "error boxes / actions": lambda row: f"{row['error_boxes']:.1e} / {row['error_actions']:.1e}",
    "error gradients": lambda row: f"{row['error_gradients']:.1e}",
    "first call of both, s": lambda row: f"{row['first_call_s']:.0f}",
}


PARTS = {
    "forward": Part("Forward", FORWARD_NOTE, FORWARD),
    "training": Part("Training step", TRAINING_NOTE, TRAINING),
    "autocast": Part("bf16 autocast", MODES_NOTE, MODES_TABLE),
    "compiled": Part("torch.compile", MODES_NOTE, MODES_TABLE),
}
