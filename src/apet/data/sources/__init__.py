"""Sources of a task's rows: the hub, local files, or a wheel of the package index.

Each has a `kind` and two methods: `identity`, plain values that determine the rows and name no path of this machine;
and `records`, which reads the rows.
"""

from __future__ import annotations

from apet.data.sources.hub import HubSource
from apet.data.sources.local import LocalSource
from apet.data.sources.wheel import WheelSource

__all__ = ["KINDS", "HubSource", "LocalSource", "Source", "WheelSource"]

Source = HubSource | LocalSource | WheelSource
KINDS = ("local", "wheel", "hub")
"""Kinds of sources, nearest first."""
