"""Files that are there whole or not at all."""

from __future__ import annotations

import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

STAGING = ".writing-"
STEM_LENGTH = 60
SCAN_ENDINGS = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|zip|dcm)$", re.IGNORECASE)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that no reader, and no interruption, ever meets half of it.

    Args:
        path: its folder is made where it is missing.
        content: text is written as UTF-8.

    Raises:
        OSError: it cannot be written (a full disk, no permission); it names the file, which is as it was before.
    """
    staging = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content.encode() if isinstance(content, str) else content)
        staging.replace(path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        # A full disk is reported without a name by the operating system.
        raise OSError(error.errno, error.strerror, str(path)) from error


def safe_stem(name: str) -> str:
    """What a scan's files are called: its name as far as every system takes it, never empty.

    >>> safe_stem("Röntgen: Müller/../chest.v2.nii.gz")
    'Rontgen-Muller-chest-v2'
    """
    plain = unicodedata.normalize("NFKD", SCAN_ENDINGS.sub("", name)).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain)[:STEM_LENGTH].strip("-_") or "scan"


@contextmanager
def replacing(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A set of files that takes the place of an earlier one as a whole: the block writes, then all are put in place.

    Other files in the folder, which may be a person's own, are not touched.

    Args:
        folder: where the set belongs; it is made where it is missing.
        names: of all files that a set can have. Those of an earlier set go, also where the new one lacks them. The
            first is the one by which a reader knows a set: it goes first and comes last.

    Yields:
        An empty folder for the block to write the new files into, on the same disk.

    Raises:
        OSError: they cannot be written or put in place; as after any error, the folder is as it was before.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Within the folder: its parent may be another disk, or not ours to write into.
        for left in folder.glob(STAGING + "*"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
        fresh, former = staging / "new", staging / "former"
        fresh.mkdir()
        former.mkdir()
        yield fresh
        _swap(folder, fresh, former, names)
    except BaseException as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for place in made:
            _remove_empty(place)
        if isinstance(error, OSError) and (error.filename is None or STAGING in str(error.filename)):
            # A full disk is reported without a name, and nobody knows the folder that the files were written into.
            raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _swap(folder: Path, fresh: Path, former: Path, names: Sequence[str]) -> None:
    """Moves the former files out of a folder and the fresh ones in; on an error everything is moved back."""
    moves = [(folder / name, former / name) for name in names if (folder / name).exists()]
    moves += [(fresh / name, folder / name) for name in reversed(names) if (fresh / name).exists()]
    done = []
    try:
        for source, target in moves:
            done.append((source, target))
            source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # others have put something there meanwhile
        folder.rmdir()
