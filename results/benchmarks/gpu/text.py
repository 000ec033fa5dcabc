"""The page of a GPU: its text and the columns of its tables."""

from __future__ import annotations

from results.benchmarks.page import Columns, Part, Row, table

HEADER = """# A GPU

Written by `{command}`, in {minutes:.1f} minutes: networks at ViT-B size with random weights on frames of 256 x 256 (a
student sees one, its teacher a clip of 16), and the demo's trained ones on frames of 128 x 128. All actors are
classified. Milliseconds are medians of calls in turn, each waited for, from normalised frame to decoded detections;
"network" is the network alone, call after call without waiting. Ratios are medians over rounds.

{machine}. Commit {commit}, {time}. Seed 0.

Errors are the largest over {frames} frames of a stream ({clips} clips of a teacher) against float32: of boxes relative
to their size, of scores as probabilities. `float32` rounds nothing to TF32; `bf16` is autocast, and recurrent states
stay in float32. A CUDA graph holds a step with its state in place: a frame is copied in, the graph is replayed,
detections are read.
"""
STEPS_NOTE = """
One stream, or one clip. RoIAlign is done by products, unless a row says otherwise.
"""
LANES_NOTE = """
Streams in one batch, each with a clock of its own: state is renewed and held lane by lane, in the graph too. Errors are
over four frames. Decoding waits for the number of people in each lane.
"""
TRAINING_NOTE = """
Steps of the Trainer with AdamW, two people at each supervised frame; loading is outside the clock. Windows as in
`configs/distill_dsta_vit_b_ava.yaml` (of the demo's size: as in `configs/distill_dsta.yaml`), no drop path. The error
is that of all gradients of the first step, relative to their norm in float32.
"""
COMPILED_NOTE = """
`torch.compile` of the whole network, launched call by call, and captured as a CUDA graph. "First" is what compilation,
or capture, and the first frames took.
"""


def _number(key: str, digits: int, unit: str = "") -> object:
    def cell(row: Row) -> str:
        return f"{row[key]:.{digits}f}{unit}" if key in row else "-"

    return cell


def _errors(row: Row) -> str:
    if "failed" in row:
        return row["failed"].replace("|", "/")
    return f"{row['error_boxes']:.1e} / {row['error_scores']:.1e}" if "error_boxes" in row else "-"


def _gradients(row: Row) -> str:
    if "failed" in row:
        return row["failed"].replace("|", "/")
    return f"{row['error_gradients']:.1e}"


NETWORK: Columns = {"network": lambda row: row["network"]}
FORM: Columns = {"form": lambda row: row["form"]}
TIMES: Columns = {
    "ms": _number("ms", 2),
    "p95": _number("p95_ms", 2),
    "network, ms": _number("network_ms", 2),
    "ratio": _number("ratio", 2),
}
ERRORS: Columns = {"error boxes / scores": _errors}
PARTS = {
    "steps": Part("Steps and clips", STEPS_NOTE, NETWORK | FORM | TIMES | ERRORS),
    "lanes": Part(
        "Several streams at once",
        LANES_NOTE,
        NETWORK
        | {"streams": lambda row: str(row["lanes"])}
        | FORM
        | {
            "ms": _number("ms", 2),
            "network, ms": _number("network_ms", 2),
            "frames/s": _number("frames_per_second", 0),
            "state MiB": _number("state_mib", 1),
            "memory MiB": _number("memory_mib", 0),
        }
        | ERRORS,
    ),
    "training": Part(
        "Training",
        TRAINING_NOTE,
        NETWORK
        | {"windows a step": lambda row: str(row["batch"])}
        | {"precision": lambda row: row["form"]}
        | {
            "steps/s": _number("steps_per_second", 2),
            "windows/s": _number("clips_per_second", 1),
            "memory MiB": _number("memory_mib", 0),
            "error gradients": _gradients,
        },
    ),
    "compiled": Part("Compiled", COMPILED_NOTE, NETWORK | FORM | TIMES | {"first, s": _number("first_s", 0)} | ERRORS),
}


def machine_line(found: Row) -> str:
    """The machine in a line."""
    line = f"{found['device']}, torch {found['torch']}, Python {found['python']}, {found['threads']} threads"
    if "cuda" in found:
        line += f", CUDA {found['cuda']}, cuDNN {found['cudnn']}, compute capability {found['capability']}, "
        line += f"{found['memory_gib']:.0f} GiB, beside an {found['processor']}"
    return line


def render(rows: list[Row], facts: Row) -> str:
    """The page of all rows measured so far.

    ``facts`` are the command, its minutes, commit and time, and over how many frames and clips errors are.
    """
    machines = [row for row in rows if row["part"] == "machine"]
    text = HEADER.format(machine=machine_line(machines[0]) if machines else "No machine yet", **facts)
    if machines and "cuda" not in machines[0]:
        text += (
            "\n**This device is no GPU**: CUDA graphs and TF32 are left out, and no figure says anything about a GPU.\n"
        )
    for name, (heading, note, columns) in PARTS.items():
        measured = [row for row in rows if row["part"] == name and "ended" not in row]
        ended = [row["ended"] for row in rows if row["part"] == name and "ended" in row]
        if measured or ended:
            text += f"\n## {heading}\n{note}\n"
            text += f"{table(measured, columns)}\n" if measured else ""
            text += "".join(f"\nThis part is not complete: {reason}.\n" for reason in ended)
    return text
