"""`python -m cuao3d` is the same program as `cuao3d`."""

import sys

from cuao3d.cli import main

sys.exit(main())
