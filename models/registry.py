"""Registries of components that users choose by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from util.cli import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Mapping from names to classes or functions that users choose by a flag.

    A component is registered by a decorator, and its file must be imported.

    Args:
        flag: The flag that takes the name, for the error message.
    """

    def __init__(self, flag: str) -> None:
        self.flag = flag
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its class or function under `name`."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{name!r} is registered twice for {self.flag}")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UserError(
                f"{self.flag} is {name!r}; it must be one of: {', '.join(self.names())}."
            )
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        return sorted(self._entries)
