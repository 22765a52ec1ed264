"""What can go wrong in the lab, told to people. Lowest layer: imports nothing of the lab."""

from __future__ import annotations


class LabError(Exception):
    """Base of all; its text says what failed and, where known, where to look."""


class NoSuchLab(LabError):
    """There is no lab of that name, or it is not complete."""


class NoHandshake(LabError):
    """The tunnel is up, but the server does not answer (a disabled account, for one)."""


class ApiError(LabError):
    """The gateway answered with an error; `text` is the envelope's."""

    def __init__(self, call: str, text: str) -> None:
        super().__init__(f"{call}: {text}")
        self.text = text
