"""What a deployment may know of the host that it runs on."""

from __future__ import annotations

from pydantic import ConfigDict

from .descriptions import Described
from .inventory import InventoryItem


class Context(Described):
    """The host that a deployment runs on, as the inventory describes it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    inventory_item: InventoryItem
    """The host's entry in the inventory."""

    @property
    def host(self) -> str:
        """The name of the host."""
        return self.inventory_item.host

    @property
    def groups(self) -> list[str]:
        """The groups of the host."""
        return self.inventory_item.groups
