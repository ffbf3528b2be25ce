"""Files that are written as a whole or not at all, and refused before the work where they cannot be."""

import os
import secrets
import shutil
import stat
from pathlib import Path

from p4lab.errors import FileError, OptionError


def writable(path: str | Path, folders: bool = False) -> Path:
    """Return the file that a path names, ``~`` and links followed, if it can be written.

    Args:
        path: of the file.
        folders: whether missing folders are made.

    Raises:
        FileError: it cannot be: its folder is missing or read-only, it is a folder itself, its name is no file name.
        OptionError: not a path.
    """
    if not isinstance(path, str | Path):
        raise OptionError(f"path={path!r}: expected text or a pathlib.Path")
    try:
        target = Path(os.path.realpath(Path(path).expanduser()))
        if folders:
            target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.is_dir():
            raise FileError(f"{str(path)!r} cannot be written: there is no folder {target.parent}; make it first")
        if target.is_dir():
            raise FileError(f"{str(path)!r} cannot be written: {target} is a folder; add the name of a file")
        if (mode := _mode(target)) is not None and not (stat.S_ISREG(mode) and os.access(target, os.W_OK)):
            raise FileError(f"{str(path)!r} cannot be written: it is read-only, or no ordinary file")
        part = _beside(target)
        try:
            part.touch(exist_ok=False)
        finally:
            part.unlink(missing_ok=True)
    except FileError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no such home, a name too long, a zero in it, a full disk
        raise _failed(path, "written", error) from error
    return target


def write_whole(path: str | Path, content: bytes, folders: bool = False) -> None:
    """Write a file in one go: until all of it is there the one before stays, and whatever ends this leaves nothing.

    Args:
        path, folders: as `writable`.
        content: of the file.

    Raises:
        FileError, OptionError: as `writable`; or the disk is full.
    """
    target = writable(path, folders)
    part = _beside(target)
    try:
        part.write_bytes(content)
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    except OSError as error:
        raise _failed(path, "written", error) from error
    finally:
        part.unlink(missing_ok=True)


def read_whole(path: str | Path) -> bytes:
    """Return what a file holds, ``~`` followed.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise _failed(path, "read", error) from error


def _beside(target: Path) -> Path:
    return target.with_name(f".{secrets.token_hex(6)}.part")


def _mode(target: Path) -> int | None:
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None


def _failed(path: str | Path, done: str, error: Exception) -> FileError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return FileError(f"{str(path)!r} cannot be {done}: {reason}; choose another file")
