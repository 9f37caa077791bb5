"""The text of files: read it, and write it."""

from __future__ import annotations

import codecs
import difflib
import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from ..core.errors import HostError, SFTPError
from ..core.files import Attributes, File, Files, printable
from ..core.host import Host
from ..core.response import Response
from ..transfer.place import Wanted, placed, tidy
from ..transfer.pump import drain, in_order
from .attributes import AttributesAsked, Progress, kind, settle
from .changes import PathChange
from .questions import PathQuestion

LONGEST_DIFF = 256 * 1024
"""Bytes of a text whose change a dry run shows."""

REQUESTS = 16
"""Blocks of a text that are under way at a time."""

BlockSize = Annotated[int, Field(ge=-1)]
"""Bytes of one request."""

MaxRequests = Annotated[int, Field(ge=-1)]
"""How many requests for content are under way at a time."""


# Those that Python has of itself; a program can register others (codecs.register_error).
_BOTH_WAYS = ("strict", "ignore", "replace", "backslashreplace", "surrogateescape", "surrogatepass")


class Read(PathQuestion[str]):
    """Read the text of the remote file.

    In Python the value is bytes where ``encoding`` is ``None``. The ends of lines stay as they are.
    """

    encoding: str | None = Field(default="utf-8", json_schema_extra={"format": "encoding"})
    """The encoding of the text; without one the value is the bytes."""
    errors: str = Field(default="strict", json_schema_extra={"enum": [*_BOTH_WAYS]})
    """What to do with bytes that the encoding does not know, as in ``bytes.decode()``."""
    block_size: BlockSize = -1
    """Bytes of one request, if positive; never more than the host takes."""
    max_requests: MaxRequests = -1
    """How many requests may be under way at a time, if positive."""
    max_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """The most bytes to read: a longer file is an error."""

    @model_validator(mode="after")
    def _check_encoding(self) -> Self:
        if self.encoding is not None:
            check_encoding(self.encoding)
            try:
                codecs.lookup_error(self.errors)(UnicodeDecodeError("utf-8", b"\xff", 0, 1, ""))
            except UnicodeError:
                pass
            except (LookupError, TypeError) as error:
                raise ValueError(f"errors: {error}") from None
        return self

    async def ask(self, files: Files) -> str:
        """Read all of the file."""
        data = await self._read(files)
        if self.encoding is None:
            return cast(str, data)
        try:
            return data.decode(self.encoding, self.errors)
        except UnicodeError as error:
            reason = getattr(error, "reason", str(error))
            where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
            raise HostError(
                f"{printable(self.path)} is not {self.encoding}{where} ({reason}): give its encoding, "
                "errors='replace', or encoding=None for bytes",
                kind="UnicodeDecodeError",
            ) from None

    async def _read(self, files: Files) -> bytes:
        found = await files.stat(self.path)
        if stat.S_ISFIFO(found.permissions):  # opening it would hold up the host's server until somebody writes
            raise SFTPError(f"{printable(self.path)} is a named pipe, not a file", kind="SFTPFailure")
        self._check_size(found.size if found.is_file else 0)
        block = min(self.block_size, files.block) if self.block_size > 0 else files.block
        data = bytearray()
        size = found.size if found.is_file else 0
        async with files.open(self.path, "read") as file, _parts(file, size, block, self.max_requests) as parts:
            async for part in parts:
                data += part
                self._check_size(len(data))
        return bytes(data)

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise HostError(
                f"{printable(self.path)} has more than {self.max_bytes:,} bytes: copy it with sftp.Get, "
                "or raise max_bytes",
                kind="FileTooLarge",
            )


class _Text(PathChange):
    """A text for a file, and what to do with what is there."""

    text: str | bytes
    """The content."""
    mode: Literal["w", "a", "x", "wb", "ab", "xb"] = "w"
    """What to do with a file that is there: replace it (``w``), add to its end (``a``), or fail (``x``)."""


class Write(AttributesAsked, _Text):
    """Write a text to a file on the host.

    A file that is replaced is at each moment either the old one or the new one, unless ``in_place``
    is set; where it has this content already, it is not written. The ends of lines stay as they are.
    """

    encoding: str | None = Field(default="utf-8", json_schema_extra={"format": "encoding"})
    """The encoding of the text; bytes need none."""
    errors: str = Field(default="strict", json_schema_extra={"enum": [*_BOTH_WAYS, "xmlcharrefreplace", "namereplace"]})
    """What to do with characters that the encoding does not have, as in ``str.encode()``."""
    block_size: BlockSize = -1
    """Bytes of one request, if positive; never more than the host takes."""
    max_requests: MaxRequests = -1
    """How many requests may be under way at a time, if positive."""
    in_place: bool = False
    """Whether to write into the file itself, where no other can be made beside it."""

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        self._data()
        return self

    def _data(self) -> bytes:
        if isinstance(self.text, bytes):
            return self.text
        if self.encoding is None:
            raise ValueError("encoding: a text needs one; only bytes do not")
        check_encoding(self.encoding)
        try:
            codecs.lookup_error(self.errors)
            return self.text.encode(self.encoding, self.errors)
        except UnicodeError as error:
            raise ValueError(f"text: {self.encoding} cannot encode it: {getattr(error, 'reason', error)}") from None
        except (LookupError, TypeError) as error:
            raise ValueError(f"errors: {error}") from None

    async def change(self, files: Files, progress: Progress) -> None:
        """Look what is there, and write where that is not what it is to be."""
        data, asked, found = self._data(), self.asked(), await files.lookup(self.path)
        if found is not None and _holds_up(found):
            raise SFTPError(f"{printable(self.path)} is {kind(found)}, not a file", kind="SFTPFailure")
        if self.mode[0] == "x":
            await self._create(files, data, progress)
        elif self.mode[0] == "a" or (found is not None and not found.is_file):  # a device, say
            if data or found is None:
                await self._append(files, data, progress)
        elif found is None or not await self._has(files, found, data):
            await self._replace(files, data, progress)
        if asked:
            await settle(files, self.path, asked, await files.stat(self.path), progress)

    async def predict(self, host: Host) -> Response[None]:
        """Tell whether there would be a change, and show that of a text."""
        response = await super().predict(host)
        if response["changed"] and (diff := await self._diff(host)):
            response["diff"] = diff
        return response

    async def _diff(self, host: Host) -> str:
        """Give the change of the text as a unified diff; nothing where it is no text, or too long a one."""
        data, old = self._data(), b""
        async with host.sftp(**self.privileges()) as files:
            found = await files.lookup(self.path)
            if found is not None:
                if not found.is_file or max(found.size, len(data)) > LONGEST_DIFF:
                    return ""
                async with files.open(self.path, "read") as file, _parts(file, found.size, files.block) as parts:
                    old = b"".join([part async for part in parts])
        try:
            before, after = old.decode(), (old + data if self.mode[0] == "a" else data).decode()
        except UnicodeDecodeError:
            return ""
        name = printable(self.path)
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, lineterm="")
        return "".join(f"{line}\n" for line in lines)

    async def _has(self, files: Files, found: Attributes, data: bytes) -> bool:
        """Whether the file has this content."""
        if not found.is_file or found.size != len(data):
            return False
        block, start = files.block, 0
        try:
            async with files.open(self.path, "read") as file, _parts(file, len(data), block) as parts:
                async for part in parts:
                    if part != data[start : start + block]:
                        return False
                    start += block
        except SFTPError:  # what cannot be read can perhaps be written
            return False
        return True

    async def _replace(self, files: Files, data: bytes, progress: Progress) -> None:
        wanted = Wanted(self.permissions, owner=(self.uid, self.gid), times=self.times())
        async with placed(files, self.path, wanted, in_place=self.in_place) as file:
            await self._write(files, file, data)
        progress.changed = True

    async def _append(self, files: Files, data: bytes, progress: Progress) -> None:
        async with files.open(self.path, "append", self.permissions) as file:
            progress.changed = True
            for start in range(0, len(data), self._block(files)):  # one after the other: each goes to the end
                await file.write(data[start : start + self._block(files)], start)

    async def _create(self, files: Files, data: bytes, progress: Progress) -> None:
        created = False
        try:
            async with files.open(self.path, "create", self.permissions) as file:
                created = True
                await self._write(files, file, data)
        except BaseException as error:
            if created:  # half a file is of no use
                await tidy(files.absolute(self.path), files.remove(self.path), error)
            raise
        progress.changed = True

    async def _write(self, files: Files, file: File, data: bytes) -> None:
        block = self._block(files)
        starts = range(0, len(data), block)
        most = self.max_requests if self.max_requests > 0 else REQUESTS

        async def write(start: int) -> None:
            await file.write(data[start : start + block], start)

        await drain(starts, write, most if files.is_remote else 1)

    def _block(self, files: Files) -> int:
        return min(self.block_size, files.block) if self.block_size > 0 else files.block


def _parts(file: File, size: int, block: int, requests: int = -1) -> aclosing[AsyncGenerator[bytes, None]]:
    """Give a file's content; what is read ahead is given up at the end of the context."""
    return aclosing(in_order(file, size, block, requests))


def _holds_up(found: Attributes) -> bool:
    """Whether it takes no text: a directory, or a named pipe, which holds up the host's server."""
    return found.is_directory or stat.S_ISFIFO(found.permissions)


def check_encoding(name: str) -> None:
    """Refuse what is no encoding of text.

    Raises:
        ValueError: There is no such encoding.
    """
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise ValueError(f"encoding: {error}") from None
