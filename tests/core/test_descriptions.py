"""What is written under fields: found when asked for, whichever way the class was made."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field

from reemote.core.descriptions import Described, describe
from reemote.host import Shell
from reemote.inventory import Inventory

T = TypeVar("T")


class Base(Described):
    first: int = 1
    """The first
    of two lines."""
    second: int = 2
    "In single quotes."
    third: int = Field(default=3, description="As the field says.")
    """Not this."""
    fourth: int = 4
    fifth: Annotated[int, Field(alias="Fifth")] = 5
    """Under its alias."""
    # A comment in between does not count.

    class Inner(Described):
        first: str = ""
        """Of the inner class."""


class Child(Base, Generic[T]):
    second: int = 22
    sixth: T | None = None
    """Of a generic class."""


def test_what_is_under_the_fields() -> None:
    texts = {name: describe(Base, name) for name in Base.model_fields}
    assert texts == {
        "first": "The first\nof two lines.",
        "second": "In single quotes.",
        "third": "As the field says.",
        "fourth": "",
        "fifth": "Under its alias.",
    }
    assert describe(Base.Inner, "first") == "Of the inner class."


def test_children_have_it_from_their_bases() -> None:
    for cls in (Child, Child[int]):
        assert describe(cls, "second") == "In single quotes."
        assert describe(cls, "first") == "The first\nof two lines."
        assert describe(cls, "sixth") == "Of a generic class."


def test_classes_in_functions_and_classes_without_source() -> None:
    class Local(Described):
        there: int = 0
        """In a function."""

    assert describe(Local, "there") == "In a function."
    namespace: dict[str, Any] = {"Described": Described}
    exec("class Made(Described):\n    there: int = 0\n    'Nobody can read it.'\n", namespace)
    assert describe(namespace["Made"], "there") == ""


def test_it_is_in_the_schema() -> None:
    schema = Child[int].model_json_schema()["properties"]
    assert schema["first"]["description"] == "The first\nof two lines."
    assert schema["third"]["description"] == "As the field says."
    assert schema["Fifth"]["description"] == "Under its alias."
    assert "description" not in schema["fourth"]

    class Holder(BaseModel):
        held: Base

    held = Holder.model_json_schema()["$defs"]["Base"]["properties"]
    assert held["second"]["description"] == "In single quotes."


def test_all_of_ours_is_described() -> None:
    found = Inventory.model_json_schema()["$defs"]
    for name in ("Connection", "InventoryItem", "Authentication"):
        for key, field in found[name]["properties"].items():
            assert field.get("description"), f"{name}.{key}"
    assert all(field.get("description") for field in Shell.model_json_schema()["properties"].values())
