"""The inventory store: one JSON file, changed atomically, never silently replaced."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import logging
import os
import re
import secrets as randomness
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import InventoryError
from ..core.inventory import Inventory
from ..core.secrets import MASK, NAMES, masked
from ..transfer.directories import make_directory
from .limits import leads_to

log = logging.getLogger("reemote")

_PARTS = ("connection", "authentication")
"""The parts of a host that hold secrets."""


class NoSuchHost(InventoryError):
    """The inventory has no host of that name."""


class StoreError(InventoryError):
    """The file cannot be used; the message says why."""


@dataclass(frozen=True)
class _Content:
    """The file as it was at one moment."""

    state: tuple[int, ...] | None
    data: dict[str, Any]
    inventory: Inventory


_NOTHING = _Content(None, {"hosts": []}, Inventory(hosts=[]))


class Store:
    """The inventory in a file.

    Several processes may change it: each holds a lock beside the file while it does. Readers see the
    old file or the new one, never a part. The version before stays as ``.bak``.

    Args:
        path: The file; where it is a symbolic link, the file that it leads to is changed.
        patience: Seconds to wait for another process that holds the lock.
    """

    def __init__(self, path: Path, *, patience: float = 10) -> None:
        self.path = path
        self._patience = patience
        self._content = _NOTHING

    def inventory(self) -> Inventory:
        """Give the inventory; an empty one where there is no file yet.

        Raises:
            InventoryError: The file is corrupt or cannot be read; it is left as it is.
        """
        return self._read().inventory

    def hosts(self) -> list[dict[str, Any]]:
        """Give the hosts as they are in the file, secrets in the clear.

        Raises:
            InventoryError: The file is corrupt or cannot be read.
        """
        hosts: list[dict[str, Any]] = copy.deepcopy(self._read().data["hosts"])
        return hosts

    def masked(self) -> dict[str, Any]:
        """Give the inventory as it is in the file, with its secrets masked.

        Raises:
            InventoryError: The file is corrupt or cannot be read.
        """
        hosts = self.hosts()
        for host in hosts:
            for part in _PARTS:
                if host.get(part):
                    host[part] = dict(masked(host[part]))
        return {"hosts": hosts}

    def create(self, given: dict[str, Any]) -> None:
        """Replace the whole inventory; masked secrets stand for those that are stored.

        Raises:
            InventoryError: What was given is no inventory, or the file cannot be used.
        """
        with self._changing() as data:
            data["hosts"] = [_unmasked(host, data["hosts"]) for host in _hosts(given)]

    def add(self, given: dict[str, Any]) -> str:
        """Add a host and give its name.

        Raises:
            InventoryError: It is no host, or its name is taken.
        """
        with self._changing() as data:
            host = _hosts({"hosts": [given]})[0]
            name = _name(host)
            if name in map(_name, data["hosts"]):
                raise InventoryError(f"there is a host {name!r} already: delete it first")
            data["hosts"].append(_unmasked(host, []))
        return name

    def delete(self, name: str) -> None:
        """Remove a host.

        Raises:
            NoSuchHost: There is none of that name.
            InventoryError: The file cannot be used.
        """
        with self._changing() as data:
            left = [host for host in data["hosts"] if _name(host) != name]
            if len(left) == len(data["hosts"]):
                raise NoSuchHost(f"there is no host {name!r}")
            data["hosts"] = left

    def _read(self) -> _Content:
        """Give what the file holds, read again when it has changed."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return _NOTHING
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        state = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
        if state == self._content.state:
            return self._content
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            inventory = _parsed(text)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise StoreError(f"{self.path}: not UTF-8 text (byte {error.start})") from None
        except InventoryError as error:
            raise StoreError(f"{self.path}{str(error).removeprefix('inventory')}") from None
        data = json.loads(text)
        if status.st_mode & 0o077 and _has_secrets(data):
            log.warning("%s holds secrets and can be read by others: chmod 600 it", self.path)
        self._content = _Content(state, data, inventory)
        return self._content

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Hold the lock, give the data to change, and write it if it makes an inventory."""
        path = Path(os.path.realpath(self.path))
        try:
            make_directory(path.parent)
            lock = path.with_name(f".{path.name}.lock")
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be changed: {error.strerror}") from None
        try:
            self._lock(descriptor)
            self._content = _NOTHING  # what was written within one tick of the clock looks unchanged
            data = copy.deepcopy(self._read().data)  # a corrupt file is an error, not an empty inventory
            yield data
            Inventory.of(data)
            _write(path, data)
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(f"{self.path} is being changed by another process: try again") from None
                time.sleep(0.002)
            except OSError as error:
                raise StoreError(f"{self.path} cannot be locked: {error.strerror}") from None
            else:
                return


def _parsed(text: str) -> Inventory:
    """Read an inventory; what is wrong with it as JSON is told with the right line."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise InventoryError(f"inventory: not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise InventoryError("inventory: not an inventory: nested too deeply") from None
    return Inventory.of(text + "\n")  # with a line's end it is no path


def _write(path: Path, data: dict[str, Any]) -> None:
    """Put new content in place of the old, which becomes ``.bak``; the lock is held."""
    try:
        text = json.dumps(data, indent=4, ensure_ascii=False, allow_nan=False) + "\n"
        content = text.encode()
    except ValueError:
        raise InventoryError("the inventory has a value that cannot be written as JSON in UTF-8") from None
    made: list[Path] = []
    try:
        _remove_leftovers(path)
        temporary = _new_file(path, content, made)
        if path.exists():
            _keep_owner(path, temporary)
            _second_name(path, path.with_name(f"{path.name}.bak"), made)
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{randomness.token_hex(8)}")


def _new_file(path: Path, content: bytes, made: list[Path]) -> Path:
    temporary = _temporary(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    made.append(temporary)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # a umask may have taken away from it
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return temporary


def _second_name(path: Path, backup: Path, made: list[Path]) -> None:
    """Let the file have the name *backup* as well, at every moment the new or the old one."""
    temporary = _temporary(path)
    made.append(temporary)
    try:
        os.link(path, temporary)
    except OSError:  # not all file systems have hard links
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as copied, path.open("rb") as original:
            shutil.copyfileobj(original, copied)
    temporary.chmod(0o600)
    temporary.replace(backup)


def _keep_owner(path: Path, temporary: Path) -> None:
    """Root may change the file of another user, who has to be able to read it afterwards."""
    status = path.stat()
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError):
            os.chown(temporary, status.st_uid, status.st_gid)


def _remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed has left; nobody else writes while we hold the lock."""
    ours = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{16}")
    for each in path.parent.iterdir():
        if ours.fullmatch(each.name):
            each.unlink(missing_ok=True)


def _hosts(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Check an inventory and give its hosts, as they were given."""
    Inventory.of(given)
    hosts: list[dict[str, Any]] = copy.deepcopy(given["hosts"])
    return hosts


def _name(host: dict[str, Any]) -> str:
    return str(host["connection"]["host"])


def _unmasked(host: dict[str, Any], stored: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the stored secrets back where a host has their masks, unless they would go elsewhere."""
    name = _name(host)
    known = next((each for each in stored if _name(each) == name), {})
    for part in _PARTS:
        options = host.get(part) or {}
        for option in [option for option, value in options.items() if value == MASK]:
            kept = (known.get(part) or {}).get(option)
            if kept is None:
                raise InventoryError(f"{name}: {part}.{option} is masked, and none is stored to keep")
            if _leads_to(host) != _leads_to(known):
                raise InventoryError(
                    f"{name}: {part}.{option} is masked, and the host leads elsewhere than it did: give it again"
                )
            options[option] = kept
    return host


def _leads_to(host: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in host["connection"].items() if value != MASK}
    return leads_to({name: value for name, value in options.items() if "PRIVATE KEY" not in str(value)})


def _has_secrets(data: dict[str, Any]) -> bool:
    return any((host.get(part) or {}).get(name) for host in data["hosts"] for part in _PARTS for name in NAMES)
