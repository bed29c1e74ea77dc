"""A bar of tqdm. Imported only when one is drawn."""

from __future__ import annotations

from tqdm.auto import tqdm

__all__ = ["Tqdm"]

_WIDTH = 5


class Tqdm(tqdm):  # type: ignore[misc]
    """tqdm with numbers of a constant width, so that what follows them does not jump."""

    @staticmethod
    def format_num(n: float | str) -> str:
        """A number in at least five characters, with zeros or a point at its end: 0.1 becomes "0.100".

        Args:
            n: A number; text is left as it is, and so are whole numbers.
        """
        if isinstance(n, str):
            return n
        text: str = tqdm.format_num(n)
        if isinstance(n, int) or "e" in text:
            return text
        if "." not in text and len(text) < _WIDTH:
            text += "."
        return text.ljust(_WIDTH, "0") if "." in text else text
