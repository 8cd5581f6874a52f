"""The commands for what comes after a training; each file parses the arguments of one, and prints."""
