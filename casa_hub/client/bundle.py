"""The laptop bundle, unpacked: a zip of the hub becomes files that only their owner can read."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

from .errors import ClientError
from .files import write_private
from .names import is_file

#: Bytes of one file, and how many files there may be: far more than certificates and a page of text.
_LARGEST, _MOST = 1024**2, 20
_TELL = "Tell the hub's operator."


def unpack(content: bytes, directory: Path) -> list[str]:
    """Write the files of a bundle into a directory, and return their names, sorted.

    Nothing is written of a zip that has anything but plain files with harmless names.
    Raises ClientError for such a zip, and if files can't be written.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if not names or len(names) > _MOST or len(set(names)) < len(names):
                raise ClientError("the bundle", "has no files, or too many", _TELL)
            if bad := [name for name in names if not is_file(name)]:
                raise ClientError("the bundle", f"has a file of a bad name ({bad[0]!a})", _TELL)
            if any(entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} for entry in entries):
                raise ClientError("the bundle", "is compressed in a way that no hub uses", _TELL)
            files = {}
            for entry in entries:
                with archive.open(entry) as file:
                    # What the zip says of its sizes may be wrong.
                    files[entry.filename] = file.read(_LARGEST + 1)
                if len(files[entry.filename]) > _LARGEST:
                    raise ClientError("the bundle", f"{entry.filename} is too large", _TELL)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, ValueError):
        raise ClientError("the bundle", "is not a zip file", _TELL) from None
    for name, data in files.items():
        write_private(directory / name, data)
    return sorted(files)
