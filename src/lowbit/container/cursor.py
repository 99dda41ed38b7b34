"""Reading bytes that may end too early."""

from __future__ import annotations

from lowbit.container.wire import read_varint

__all__ = ["Cursor", "Damage"]


class Damage(Exception):  # noqa: N818 - becomes an error where it is known in what
    """What was read is not what was written."""


class Cursor:
    """A place in some bytes."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._position = 0

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self._data) - self._position

    @property
    def rest(self) -> memoryview:
        """The bytes that have not been read."""
        return self._data[self._position :]

    def take(self, length: int) -> memoryview:
        """Return the next bytes.

        Raises:
            Damage: There are fewer.
        """
        if length > self.left:
            raise Damage("the file ends in it")
        self._position += length
        return self._data[self._position - length : self._position]

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next number, seven bits a byte, the lowest first."""
        try:
            value, self._position = read_varint(self._data, self._position)
        except ValueError as error:
            raise Damage("the file ends in it") from error
        return value
