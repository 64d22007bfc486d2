"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path


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
