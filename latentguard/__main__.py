import sys

from latentguard.cli import main

sys.exit(main(prog="python -m latentguard"))
