"""The interface of image stores, and the simplest one, a folder."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pcmoe_det.datasets.image_header import image_size_from_header
from pcmoe_det.errors import DataError

__all__ = ["FolderStore", "ImageStore"]


class ImageStore(ABC):
    """Encoded images by member name (``<videoName>/<name>``).

    Any thread may read, also in a process forked after the store was opened. A pickled store carries only
    its path and indexes the file again where it is unpickled.

    Attributes:
        path: The archive or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __contains__(self, member: str) -> bool: ...

    @abstractmethod
    def members(self) -> Iterator[str]:
        """All member names, in the order of the store."""

    @abstractmethod
    def read(self, member: str) -> bytes:
        """The encoded image.

        Raises:
            DataError: There is no such member, or the store is damaged there.
        """

    def close(self) -> None:  # noqa: B027  (a folder has nothing to close)
        """Give back file handles. A closed store is not read again."""

    def missing(self, members: Iterable[str]) -> list[str]:
        """Those of ``members`` that the store does not have."""
        return [member for member in members if member not in self]

    def read_size(self, member: str) -> tuple[int, int]:
        """``(width, height)`` in pixels from the header of the image; EXIF orientation is not looked at.

        Raises:
            DataError: There is no such member, or it is neither a JPEG nor a PNG.
        """
        size = image_size_from_header(self.read(member))
        if size is None:
            raise DataError(
                f"{self.locate(member)}: not a readable JPEG or PNG header, so its size is unknown"
            )
        return size

    def locate(self, member: str) -> str:
        """Store and member as one printable text, such as ``data/img.zip:video/00000000_img_front.jpg``."""
        return f"{self.path}:{member}"

    def no_such_member(self, member: str) -> DataError:
        """The error for a member that is not there; it says what is."""
        example = next(self.members(), None)
        holds = "it holds no images" if example is None else f"it holds for example {example!r}"
        if example is not None and example.lower().endswith((".mp4", ".avi")):
            holds += "; videos must be decompressed into frames first (img_decompressed.zip, .tar or .hdf5)"
        return DataError(f"{self.path} has no image {member!r}; {holds}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)


class FolderStore(ImageStore):
    """Images as files below a folder."""

    def __contains__(self, member: str) -> bool:
        return (self.path / member).is_file()

    def members(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self.path):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith((".jpg", ".jpeg", ".png")):
                    yield (Path(folder) / name).relative_to(self.path).as_posix()

    def missing(self, members: Iterable[str]) -> list[str]:
        # One listing per video instead of one stat per frame: on network file systems that is minutes saved.
        listings: dict[str, frozenset[str]] = {}
        absent: list[str] = []
        for member in members:
            folder, _, name = member.rpartition("/")
            if folder not in listings:
                try:
                    listings[folder] = frozenset(entry.name for entry in os.scandir(self.path / folder))
                except OSError:
                    listings[folder] = frozenset()
            if name not in listings[folder]:
                absent.append(member)
        return absent

    def read(self, member: str) -> bytes:
        try:
            return (self.path / member).read_bytes()
        except FileNotFoundError as error:
            raise self.no_such_member(member) from error
        except OSError as error:
            raise DataError(f"{self.locate(member)}: cannot be read: {error.strerror}") from error

    def locate(self, member: str) -> str:
        return str(self.path / member)
