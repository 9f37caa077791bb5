"""The program that the demonstration shows and runs."""

from typing import Any

from reemote.host import Shell
from reemote.system import Return


class Survey:
    """Ask a host who it is, count its processors, and leave a note."""

    async def execute(self) -> Any:
        user = yield Shell(cmd="whoami")
        system, processors = yield [Shell(cmd="uname -sr"), Shell(cmd="nproc")]  # at the same time
        note = yield Shell(cmd="tee note.txt", stdin=f"surveyed: {system.value.stdout}")
        if note.value.returncode != 0:
            yield Shell(cmd="echo 'no note today' >&2")
        yield Return(
            value={
                "user": user.value.stdout.strip(),
                "system": system.value.stdout.strip(),
                "processors": int(processors.value.stdout),
                "note": note.value.stdout.strip(),
            }
        )
