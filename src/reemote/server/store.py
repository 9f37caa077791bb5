"""The inventory store: one JSON file, changed atomically, never silently replaced."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import logging
import os
import secrets as randomness
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import InventoryError
from ..core.inventory import Inventory
from ..core.secrets import MASK, NAMES

log = logging.getLogger("reemote")

_KEPT_SECRETS = ("connection", "authentication")


class Store:
    """The inventory in a file.

    Several processes may change it: each holds a lock beside the file while it does. Readers see the
    old file or the new one, never a part. The version before stays as ``.bak``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: tuple[int, int, int] | None = None
        self._inventory = Inventory(hosts=[])

    def inventory(self) -> Inventory:
        """Give the inventory; an empty one where there is no file yet.

        Raises:
            InventoryError: The file is corrupt or cannot be read; it is left as it is.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return Inventory(hosts=[])
        except OSError as error:
            raise InventoryError(f"{self.path}: {error.strerror}") from None
        state = (status.st_mtime_ns, status.st_ino, status.st_size)
        if state != self._state:
            self._inventory, self._state = Inventory.load(self.path), state
            if status.st_mode & 0o077 and _has_secrets(self._data()):
                log.warning("%s holds secrets and can be read by others: chmod 600 it", self.path)
        return self._inventory

    def masked(self) -> dict[str, Any]:
        """Give the inventory as it is in the file, with its secrets masked."""
        self.inventory()
        data = self._data()
        for host in data["hosts"]:
            for part in _KEPT_SECRETS:
                for name in NAMES & set(host.get(part) or ()):
                    if host[part][name] is not None:
                        host[part][name] = MASK
        return data

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
            name = str(host["connection"]["host"])
            if name in map(_name, data["hosts"]):
                raise InventoryError(f"there is a host {name!r} already: delete it first")
            data["hosts"].append(_unmasked(host, []))
        return name

    def delete(self, name: str) -> None:
        """Remove a host.

        Raises:
            InventoryError: There is none of that name.
        """
        with self._changing() as data:
            left = [host for host in data["hosts"] if _name(host) != name]
            if len(left) == len(data["hosts"]):
                raise InventoryError(f"there is no host {name!r}")
            data["hosts"] = left

    def _data(self) -> dict[str, Any]:
        try:
            data: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"hosts": []}
        return data

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Hold the lock, give the data to change, and write it if it makes an inventory."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = self.path.with_name(f".{self.path.name}.lock")
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InventoryError(f"{self.path} cannot be changed: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.inventory()  # a corrupt file is an error, not an empty inventory
            before = self._data()
            data = copy.deepcopy(before)
            yield data
            Inventory.of(data)
            self._write(data)
        finally:
            os.close(descriptor)

    def _write(self, data: dict[str, Any]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{randomness.token_hex(8)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=4, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                backup = self.path.with_name(f"{self.path.name}.bak")
                backup.unlink(missing_ok=True)
                os.link(self.path, backup)
                backup.chmod(0o600)
            temporary.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise InventoryError(f"{self.path} cannot be written: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)


def _hosts(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Check an inventory and give its hosts, as they were given."""
    Inventory.of(given)
    hosts: list[dict[str, Any]] = copy.deepcopy(given["hosts"])
    return hosts


def _name(host: dict[str, Any]) -> str:
    return str(host["connection"]["host"])


def _unmasked(host: dict[str, Any], stored: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the stored secrets back where a host has their masks."""
    known = next((each for each in stored if _name(each) == _name(host)), {})
    for part in _KEPT_SECRETS:
        for name in NAMES & set(host.get(part) or ()):
            if host[part][name] == MASK:
                kept = (known.get(part) or {}).get(name)
                if kept is None:
                    raise InventoryError(f"{_name(host)}: {part}.{name} is masked, and none is stored to keep")
                host[part][name] = kept
    return host


def _has_secrets(data: dict[str, Any]) -> bool:
    return any((host.get(part) or {}).get(name) for host in data["hosts"] for part in _KEPT_SECRETS for name in NAMES)
