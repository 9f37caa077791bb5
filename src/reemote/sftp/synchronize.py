"""Sync: make a directory of the host equal to one of this machine."""

from __future__ import annotations

from pydantic import Field

from ..core.files import LocalPath, ProgressHandler, RemotePath
from ..core.host import Host
from ..core.operation import Effect
from ..core.remote import Privileged
from ..core.response import Response
from ..transfer.local import here
from ..transfer.sync import Report, sync


class Sync(Privileged[Report]):
    """Make a directory on the host equal to a directory of this machine.

    Kinds, contents, symbolic links and modes become equal; owners do not: what is new belongs to the
    user who logs in. A file counts as equal when size and time are; where only the times differ, the
    contents are compared. Files that are sent get the times that they have here. New files take their places when all
    of them have arrived. The directory itself is made where it is missing, with those above it.
    """

    effect = Effect.ENSURES

    localpath: LocalPath
    """The directory on this machine."""
    remotepath: RemotePath
    """The directory on the host."""
    delete: bool = False
    """Remove from the host's directory what is not in the one here."""
    exclude: list[str] = Field(default_factory=list, examples=[["*.pyc", ".git/"]])
    """Patterns of names to leave alone on both sides. One without a slash matches names at every
    depth, one with a slash the path from the top; one that ends with a slash matches directories only."""
    checksum: bool = False
    """Compare the contents of files whose size and time are equal, too."""
    progress_handler: ProgressHandler | None = None
    """Called with source path, target path, bytes copied and bytes in all after each part of a file."""

    async def perform(self, host: Host) -> Response[Report]:
        """Compare, and send what differs."""
        return await self._sync(host, dry_run=False)

    async def predict(self, host: Host) -> Response[Report]:
        """Compare, and tell what differs."""
        return await self._sync(host, dry_run=True)

    async def _sync(self, host: Host, *, dry_run: bool) -> Response[Report]:
        async with host.sftp(**self.privileges()) as files:
            changed, report = await sync(
                here.get(),
                self.localpath,
                files,
                self.remotepath,
                delete=self.delete,
                exclude=self.exclude,
                checksum=self.checksum,
                progress_handler=self.progress_handler,
                dry_run=dry_run,
            )
        return Response(value=report, changed=changed)
