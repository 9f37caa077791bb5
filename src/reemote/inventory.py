"""The inventory: hosts, and how to reach them."""

from .core.inventory import Authentication, Connection, Inventory, InventoryItem, Session

__all__ = ["Authentication", "Connection", "Inventory", "InventoryItem", "Session"]
