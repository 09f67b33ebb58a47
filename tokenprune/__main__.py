"""`python -m tokenprune` is the command `tokenprune`."""

from __future__ import annotations

import sys

from tokenprune.cli.app import main

sys.exit(main())
