"""Exports of CVAT in the form "CVAT for video 1.1", opened within limits."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from datamodules.annotations.cvat.tracks import CvatTask, Export
from datamodules.errors import UserError

LARGEST_XML = 256 * 2**20
"""Bytes of xml that are read: some hours of film with several people."""
MOST_EXPANSION, NEVER_MIND = 200, 16 * 2**20
"""An xml of more than 16 MiB may be so many times as large as its zip; where no box moves it is 42 times."""
CHUNK = 2**16


def read_cvat(
    path: str | Path,
    attributes: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    leave_out: Sequence[str] = (),
    *,
    check_boxes: bool = False,
) -> CvatTask:
    """Read a task, or one job of it, exported as "CVAT for video 1.1".

    CVAT writes a box for every frame, interpolated between those that were drawn. Where a person leaves it writes one
    with ``outside`` set, which is no box. Boxes are cut off at the edges of the frame; of a rotated one its outer
    bounds are taken.

    Args:
        path: the xml or the zip.
        attributes: those that hold the actions; none for the label.
        size: width and height of the frames, where the export does not say them.
        leave_out: labels whose tracks are not read.
        check_boxes: whether every check box stands for an action of its name.

    Raises:
        UserError: the file is another form of export, holds several tasks, or is damaged or too large. So are files
            that lack a size, a label or an attribute, or name an action in several lines. A document type is refused,
            since its entities could fill the memory.
    """
    path = Path(path)
    export = Export(path, attributes, leave_out, check_boxes)
    parser = ElementTree.XMLParser(target=export)
    try:
        with _opened(path) as stream:
            while chunk := stream.read(CHUNK):
                parser.feed(chunk)
        parser.close()
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"is not a readable export of CVAT: {error}", path) from None
    return export.task(size)


DAMAGED = (
    ElementTree.ParseError,
    ValueError,  # an encoding that is none
    LookupError,  # no annotations.xml in the zip, or an unknown encoding
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # packed in a way that Python cannot read
    RuntimeError,  # encrypted
)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open the xml, in a zip or not, if it is not too large."""
    if not path.is_file():
        raise UserError("no such export of CVAT", path)
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        _check_size(path, size, LARGEST_XML)
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise UserError("is a zip that is cut off or damaged", path, "export it from CVAT once more")
            file.seek(0)
            yield file
        return
    with zipfile.ZipFile(path) as archive, archive.open("annotations.xml") as file:
        # No more is unpacked than the zip declares here.
        unpacked = archive.getinfo("annotations.xml").file_size
        _check_size(path, unpacked, min(LARGEST_XML, max(NEVER_MIND, MOST_EXPANSION * size)))
        yield file


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        problem = f"holds {size / 2**20:.0f} MiB of xml, and no more than {limit / 2**20:.0f} MiB are read"
        raise UserError(problem, path, "export its jobs one by one")
