"""`python -m etude`: the command line where the script is not on the path."""

import sys

from etude.cli import main

sys.exit(main())
