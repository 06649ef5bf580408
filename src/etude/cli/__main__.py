"""`python -m etude.cli`."""

import sys

from etude.cli import main

sys.exit(main())
