"""Zips: their files, unpacked where nothing in the archive decides."""

from __future__ import annotations

import errno
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from mst.errors import ScanError

MAX_UNZIPPED = 6 * 1024**3
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, by its name or its content."""
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


def unpack(path: Path, folder: Path) -> list[Path]:
    """Unpacks a zip's files; never outside the folder, never more than `MAX_UNZIPPED` bytes.

    Raises:
        ScanError: it is damaged, protected, too large, or packed in a way that is not known.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if any(entry.flag_bits & 1 for entry in entries):
                raise ScanError(f"{path.name} is protected by a password; zip it again without one.")
            if sum(entry.file_size for entry in entries) > MAX_UNZIPPED:
                raise ScanError(
                    f"{path.name} unpacks to more than {MAX_UNZIPPED // 1024**3} GB; zip one series only."
                )
            files = []
            for index, entry in enumerate(entries):
                name = PurePosixPath(entry.filename.replace("\\", "/"))
                if "__MACOSX" in name.parts or name.name.startswith("."):
                    continue
                # Folders are numbered, so that no name in the archive decides where a file goes.
                parent = folder / f"{zlib.crc32(str(name.parent).encode()):08x}"
                parent.mkdir(parents=True, exist_ok=True)
                target = parent / name.name
                if target.exists():
                    target = parent / f"{index}-{name.name}"
                with archive.open(entry) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1024 * 1024)
                files.append(target)
    except NotImplementedError as error:
        raise ScanError(
            f"{path.name} is compressed by a method that is not read; zip it again with another program."
        ) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise ScanError(
                f"{path.name} does not fit on this machine's disk when it is unpacked."
            ) from error
        raise ScanError(f"{path.name} is a damaged zip file; download or zip it again.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ScanError(f"{path.name} is a damaged zip file; download or zip it again.") from error
    return files
