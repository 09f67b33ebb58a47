"""Public kit for plugin authors: views made of recorded or random tensors."""

from __future__ import annotations

from tokenprune.testing.recorded_view import RecordedView
from tokenprune.testing.recording import Recording, random_recording

__all__ = ["RecordedView", "Recording", "random_recording"]
