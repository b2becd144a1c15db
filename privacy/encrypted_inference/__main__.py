"""``python -m privacy.encrypted_inference``."""

import sys

from privacy.encrypted_inference.cli import main

if __name__ == "__main__":
    sys.exit(main())
