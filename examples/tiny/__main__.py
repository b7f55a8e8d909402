"""The door: python -m examples.tiny FAMILY OUT."""

import sys

from examples.tiny import main

if __name__ == "__main__":
    sys.exit(main())
