"""`python -m lowbit.cli`, the same as the `lowbit` command."""

from __future__ import annotations

import sys

from lowbit.cli.application import main

sys.exit(main())
