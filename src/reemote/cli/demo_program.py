"""The program that the demonstration shows and runs."""

from typing import Any

from reemote.host import Shell
from reemote.system import Return


class Survey:
    """Ask a host who it is, count its processors, and leave a note."""

    async def execute(self) -> Any:
        user = yield Shell(cmd="whoami")
        # These two run at the same time.
        system, cores = yield [Shell(cmd="uname -sr"), Shell(cmd="nproc")]
        cores = int(cores.value.stdout)
        found = f"{system.value.stdout.strip()}, {cores} cores"
        note = yield Shell(cmd="tee note.txt", stdin=found)
        if note.value.returncode != 0:
            yield Shell(cmd="echo 'no note today' >&2")
        user = user.value.stdout.strip()
        yield Return(value={"user": user, "found": note.value.stdout})
