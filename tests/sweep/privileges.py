"""A process that may not do everything, also where tests run as a superuser."""

from __future__ import annotations

import ctypes
import os


def without_privileges() -> None:
    """Take from a superuser's process, before it starts, the right to write where it may not."""
    if os.geteuid() == 0:
        drop_from_bounding_set, override_permissions = 24, 1
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, override_permissions, 0, 0, 0) == 0
