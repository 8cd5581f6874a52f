"""One process of test_torchrun.py, which torchrun starts on each of two nodes: python node_run.py COMMANDS.

COMMANDS is a JSON list of arguments of `lightning-recall`, which run one after the other.
"""

import json
import sys

if __name__ == "__main__":  # pytest imports the file to look for doctests
    from lightning_recall.cli import main

    commands = json.loads(sys.argv[1])
    sys.argv = ["lightning-recall"]  # otherwise Lightning parses this script's arguments
    for arguments in commands:
        main(arguments)
