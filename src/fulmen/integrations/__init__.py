"""Third parties, one file each. Nothing is imported before it is asked for by name."""

from __future__ import annotations
