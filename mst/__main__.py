"""`python -m mst` is the `mst` command."""

import sys

from mst.cli import main

sys.exit(main())
