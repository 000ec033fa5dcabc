"""Pickles that lie, and the program that reads files in a process of its own: a lie that works ends it by a signal.

``python -m tests.datamodules.annotations.hostile_pickles read FOLDER`` reads every pickle of a folder as annotation;
``... fuzz FOLDER SEED COUNT`` reads that many mutations of them. Both print what came of it as json.
"""

import collections
import json
import pickle
import random
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodules.annotations.pickles.safe_pickle import load_pickle
from datamodules.annotations.thumos14 import read_per_frame
from datamodules.annotations.tubes import GroundTruthPickle
from datamodules.annotations.ucf101_24 import Pyannot
from datamodules.errors import UserError

ADDRESS_SPACE = 4 * 2**30
"""Bytes, most of which are libraries."""
CORE = np._core if hasattr(np, "_core") else np.core
OBJECTS = (3, "|", None, None, None, -1, -1, 63)
"""State of the dtype of objects."""
PLAIN = (3, "<", None, None, None, -1, -1, 0)


class Made:
    """Pickles into a call, and a state for what it gives."""

    def __init__(self, function, arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def dtype(name: str, state: object = None) -> Made:
    return Made(np.dtype, (name, False, True), state)


def array(
    of: object, shape: object = (1,), data: object = b"A" * 8, version: object = 1, fortran: object = False
) -> Made:
    state = (version, shape, of, fortran, data)
    return Made(CORE.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)


def scalar(of: object, data: object = b"A" * 8) -> Made:
    return Made(CORE.multiarray.scalar, (of, data))


FORGED_DTYPES = {
    "bytes that say they are objects": dtype("V8", OBJECTS),
    "numbers that say they are objects": dtype("i8", OBJECTS),
    "text that says it is objects": dtype("S8", OBJECTS),
    "objects without their flags": dtype("O8", (3, "|", None, None, None, -1, -1, 0)),
    "a structure": dtype("V8", (3, "|", None, ("x",), {"x": (dtype("O8", OBJECTS), 0)}, 8, 1, 27)),
    "a structure of numbers": dtype("V8", (3, "|", None, ("x",), {"x": (dtype("i8", PLAIN), 0)}, 8, 1, 0)),
    "a structure far outside": dtype("V8", (3, "|", None, ("x",), {"x": (dtype("i8", PLAIN), 2**40)}, 8, 1, 0)),
    "a structure beneath numbers": dtype("i8", (3, "<", None, ("x",), {"x": (dtype("O8", OBJECTS), 0)}, 8, 1, 63)),
    "an array of objects in each place": dtype("V8", (3, "|", (dtype("O8", OBJECTS), (1,)), None, None, 8, 8, 63)),
    "an array in each place of numbers": dtype("i8", (3, "<", (dtype("O8", OBJECTS), (1,)), None, None, -1, -1, 0)),
    "text of another length": dtype("S8", (3, "|", None, None, None, 2**30, 1, 0)),
    "text of negative length": dtype("S8", (3, "|", None, None, None, -8, 1, 0)),
    "characters of another length": dtype("U2", (3, "<", None, None, None, 2**30, 4, 8)),
    "numbers of another length": dtype("i8", (3, "<", None, None, None, 2**30, -1, 0)),
    "numbers of another alignment": dtype("i8", (3, "<", None, None, None, -1, 2**30, 0)),
    "numbers with flags": dtype("i8", (3, "<", None, None, None, -1, -1, 63)),
    "numbers with metadata": dtype("i8", (4, "<", None, None, None, -1, -1, 0, {"x": 1})),
    "numbers of another version": dtype("i8", (0, "<", None, None, None, -1, -1)),
    "numbers of no byte order": dtype("i8", (3, "O", None, None, None, -1, -1, 0)),
    "numbers of a long byte order": dtype("i8", (3, "<" * 100, None, None, None, -1, -1, 0)),
    "a state that is a list": dtype("i8", list(PLAIN)),
    "a state that is text": dtype("i8", "<"),
    "raw bytes": dtype("V8"),
    "a date": dtype("M8[s]"),
    "a date in parts": dtype("M8", (4, "<", None, None, None, -1, -1, 0, (None, (b"D", 2**40, 0, -1)))),
    "a structure by name": dtype("i4,O"),
    "a structure by list": Made(np.dtype, ([("x", "O")], False, True)),
    "an array by name": dtype("(1)O"),
    "a dtype by class": Made(np.dtype, (dict, False, True)),
    "an aligned dtype": Made(np.dtype, ("i8", True, True)),
}


def memo_bomb(levels: int) -> bytes:
    """Lists of which each holds the one before it ten times."""
    parts = [b"\x80\x02]q\x00"]
    for level in range(levels):
        before, this = bytes([level]), bytes([level + 1])
        parts.append(b"](" + (b"h" + before) * 10 + b"eq" + this)
    return b"".join([*parts, b"."])


RAW = {
    "an index of 2**31": b"\x80\x02]r\xff\xff\xff\x7f.",
    "an index of 2**32": b"\x80\x02]r\xff\xff\xff\xff.",
    "many indices": b"\x80\x02]" + b"".join(b"r" + bytes([0, 0, 0, n]) for n in range(128)) + b".",
    "a bytearray of 2**40": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"a.",
    "bytes of 2**40": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"a.",
    "text of 2**40": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"a.",
    "a frame of 2**40": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
    "a frame of 2**63": b"\x80\x04\x95" + (2**63).to_bytes(8, "little") + b"N.",
    "a number of 2**31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "a number of many digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a bytearray of a number": b"c__builtin__\nbytearray\n(L1000000000000L\ntR.",
    "copies of a bytearray": b"\x80\x02(U\xff"
    + b"a" * 255
    + b"q\x00"
    + b"c__builtin__\nbytearray\nh\x00\x85R" * 100_000
    + b"l.",
    "a tuple as a key, 500000 deep": b"\x80\x02}N" + b"\x85" * 500_000 + b"Ns.",
    "a tuple in a set, 500000 deep": b"\x80\x04\x8f(N" + b"\x85" * 500_000 + b"\x90.",
    "a tuple in a frozen set, 500000 deep": b"\x80\x04(N" + b"\x85" * 500_000 + b"\x91.",
    "a tuple in a set that is called, 500000 deep": b"c__builtin__\nset\n(]N" + b"\x85" * 500_000 + b"atR.",
    "a tuple 500000 deep": b"\x80\x02N" + b"\x85" * 500_000 + b".",
    "a list 500000 deep": b"]" * 500_000 + b"a" * 499_999 + b".",
    "marks 500000 deep": b"(" * 500_000 + b"t" * 500_000 + b".",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dict that holds itself": b"\x80\x02}q\x00Nh\x00s.",
    "a list of its own tuple": b"\x80\x02]q\x00h\x00\x85a.",
    "a memo bomb": memo_bomb(20),
    "a deep memo bomb": memo_bomb(200),
    "a memo bomb of a class": b"cnumpy\nndarray\n.",
    "numpy.ndarray called": b"cnumpy\nndarray\n((I1\ntS'O'\nS'AAAAAAAA'\ntR.",
    "numpy.ndarray made": b"\x80\x02cnumpy\nndarray\n(I1\nt\x85\x81.",
    "numpy.ndarray of 2**40": b"cnumpy\nndarray\n((L1099511627776L\nttR.",
    "an empty array of 2**40": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1099511627776L\ntS'b'\ntR.",
    "an empty array of objects": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1\ntS'O'\ntR.",
    "an array of another class": b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nlist\n(I0\ntS'b'\ntR.",
    "a state for a class": b"c__builtin__\ndict\n}S'x'\nI1\nsb.",
    "a state for a function": b"c_codecs\nencode\n}S'x'\nI1\nsb.",
    "a state in slots": b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__N\x85s\x86b.",
    "a state for a list": b"]}S'x'\nI1\nsb.",
    "an extension": b"\x80\x02\x82\x01.",
    "an outside object that is a bomb": memo_bomb(60)[:-1] + b"Q.",
    "a buffer from outside": b"\x80\x05\x97.",
}


def lies() -> dict[str, bytes]:
    """Files that must be refused, by what is wrong with them."""
    whole = dtype("i8", PLAIN)
    objects = dtype("O8", OBJECTS)
    things = {}
    for name, forged in FORGED_DTYPES.items():
        things |= {f"array of {name}": array(forged), f"scalar of {name}": scalar(forged)}
        things[f"buffer of {name}"] = Made(CORE.numeric._frombuffer, (b"A" * 8, forged, (1,), "C"))
    things |= {
        "array of objects from bytes": array(objects),
        "scalar of objects from bytes": scalar(objects),
        "scalar of objects from a list": scalar(objects, [1]),
        "buffer of objects": Made(CORE.numeric._frombuffer, (b"A" * 8, objects, (1,), "C")),
        "array of too many objects": array(objects, (3,), [1]),
        "array of numbers from a list": array(whole, (1,), [1]),
        "array of numbers from a number": array(whole, (1,), 5),
        "array longer than its bytes": array(whole, (2,)),
        "array shorter than its bytes": array(whole, (0,)),
        "array of 2**61 numbers": array(whole, (2**61,)),
        "array of 2**32 times 2**32 numbers": array(whole, (2**32, 2**32), b""),
        "empty array of 2**40 rows": array(whole, (2**40, 0), b""),
        "array of negative size": array(whole, (-1, -1)),
        "array of half a row": array(whole, (0.5,)),
        "array of a list as shape": array(whole, [1]),
        "array of 100 dimensions": array(whole, (1,) * 100),
        "array of another version": array(whole, version=0),
        "array of a strange order": array(whole, fortran=5),
        "array without a dtype": array("i8"),
        "array of a dtype's name": array(None),
        "array of text without a character": array(dtype("U0", (3, "<", None, None, None, 0, 4, 8)), (2**40,), b""),
        "truth values of 255": array(dtype("b1", (3, "|", None, None, None, -1, -1, 0)), (8,), b"\xff" * 8),
        "truth value of 255": scalar(dtype("b1", (3, "|", None, None, None, -1, -1, 0)), b"\xff"),
        "characters that do not exist": array(dtype("U2", (3, "<", None, None, None, 8, 4, 8)), (1,), b"\xff" * 8),
        "scalar of too few bytes": scalar(whole, b"A"),
        "scalar of too many bytes": scalar(whole, b"A" * 800),
        "buffer that is an array": Made(CORE.numeric._frombuffer, (array(whole), whole, (1,), "C")),
        "buffer of another order": Made(CORE.numeric._frombuffer, (b"A" * 8, whole, (1,), "Z")),
        "a state for a number": Made(complex, (1.0, 2.0), {"x": 1}),
    }
    files = {name: pickle.dumps({"boxes": [thing]}, 2) for name, thing in things.items()}
    tube = np.ones((50_000, 5), np.float32)
    boxes = {"label": 0, "sf": 0, "ef": 50_000, "boxes": np.ones((50_000, 4), np.uint8)}
    truth = {"labels": ["a"], "gttubes": {"a/v": {0: [tube] * 100_000}}, "nframes": {"a/v": 1}}
    truth |= {"resolution": {"a/v": (240, 320)}, "train_videos": [["a/v"]], "test_videos": [[]]}
    pyannot = {"a/v": {"numf": 5, "label": 0, "annotations": [boxes] * 100_000}}
    often = {
        "a tube 100000 times": truth,
        "boxes 100000 times": pyannot,
        "a long name often": {"a": ["a" * 10**6] * 10**6},
    }
    files |= {name: pickle.dumps(contents, 4) for name, contents in often.items()}
    # The state comes once more after the array, or its dtype, has been finished.
    again = pickle.dumps(array(whole), 2)[:-1] + pickle.dumps((1, (2**40,), None, False, b""), 2)[2:-1] + b"b."
    ordered = pickle.dumps(whole, 2)[:-1] + pickle.dumps(PLAIN, 2)[2:-1] + b"b."
    return files | RAW | {"a state twice": again, "a dtype's state twice": ordered}


# The process that reads them.


def outcome(path: Path) -> str:
    """Read a file as every source does that takes pickles, all videos of it; what was said, or ``read``."""
    try:
        contents = load_pickle(path)
    except UserError as error:
        return str(error)
    said = []
    for form in (GroundTruthPickle, Pyannot):
        try:
            file = form(path, contents)
            said += [len(file.read(name).boxes) for name in file.names]
        except UserError as error:
            said.append(str(error))
    try:
        said.append(len(read_per_frame(path)))
    except UserError as error:
        said.append(str(error))
    assert not any("\n" in str(line) for line in said), said
    return "read" if any(isinstance(line, int) for line in said) else said[-1]


def peak_mib() -> int:
    """The most memory that this program has had; ``getrusage`` would count what started it too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


TOKENS = (
    b"O8", b"V8", b"S8", b"U2", b"i8", b"f4", b"b1", b"M8", b"|", b"<", b">", b"I-1\n", b"I99999999999\n", b"N",
    b"(", b"t", b"R", b"b", b"s", b"u", b"e", b"]", b"}", b")", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x94",
    b"h\x00", b"q\x00", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"K\x3f", b"r\xff\xff\xff\x7f",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\nscalar\n", b"c__builtin__\nset\n", b"\x96" + b"\xff" * 8,
    b"\x95" + b"\xff" * 7 + b"\x00", b"U\xff", b"X\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 8,
)  # fmt: skip


def mutated(originals: list[bytes], generator: random.Random) -> bytes:
    """One of the files with one to six changes of the kinds that find holes in readers."""
    data = bytearray(generator.choice(originals))
    for _ in range(generator.choice((1, 1, 2, 3, 6))):
        place = generator.randrange(len(data) + 1)
        kind = generator.randrange(7)
        if kind == 0:
            data[place : place + 1] = bytes([generator.randrange(256)])
        elif kind == 1:
            data[place : place + 1] = bytes([data[place] ^ 1 << generator.randrange(8)] if place < len(data) else [0])
        elif kind == 2:
            data[place:place] = generator.choice(TOKENS)
        elif kind == 3:
            token = generator.choice(TOKENS)
            data[place : place + len(token)] = token
        elif kind == 4:
            del data[place : place + generator.randrange(1, 40)]
        elif kind == 5:  # a piece of one of the files, here or in place of what is here
            other = generator.choice(originals)
            start = generator.randrange(len(other))
            piece = other[start : start + generator.randrange(1, 200)]
            data[place : place + generator.choice((0, len(piece)))] = piece
        else:  # an instruction that a dtype or an array depends on: a name, a state
            found = [i for token in (b"f4", b"f8", b"u1", b"NNN", b"<", b"tb") for i in _places(data, token)]
            if found:
                place = generator.choice(found)
                data[place : place + 2] = generator.choice(TOKENS)
    return bytes(data)


def _places(data: bytearray, token: bytes) -> Iterator[int]:
    place = data.find(token)
    while place >= 0:
        yield place
        place = data.find(token, place + 1)


def fuzz(folder: Path, seed: int, count: int) -> dict[str, object]:
    """Read mutations of the files of a folder; anything but a UserError ends the program."""
    generator = random.Random(seed)
    originals = [path.read_bytes() for path in sorted(folder.iterdir())]
    file = folder.parent / f"mutated_{seed}.pkl"
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for _ in range(count):
        file.write_bytes(mutated(originals, generator))
        start = time.perf_counter()
        said = outcome(file)
        slowest = max(slowest, time.perf_counter() - start)
        assert "\n" not in said and len(said) < 1000, said
        ends = {": refused: ": "refused", ": is not a readable pickle": "unreadable"}
        other = "read" if said == "read" else "no annotation"
        outcomes[next((end for part, end in ends.items() if part in said), other)] += 1
    return {**outcomes, "slowest_seconds": slowest, "peak_mib": peak_mib()}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in text of Python 2
    action, where = sys.argv[1], Path(sys.argv[2])
    if action == "fuzz":
        print(json.dumps(fuzz(where, int(sys.argv[3]), int(sys.argv[4]))))
    else:
        for path in sorted(where.iterdir()):
            start = time.perf_counter()
            said = outcome(path)
            print(json.dumps([path.name, said, time.perf_counter() - start, peak_mib()]), flush=True)
