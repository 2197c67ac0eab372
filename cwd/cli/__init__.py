"""The command line: `cwd` and `python -m cwd`. One file per group; what a command needs, it imports itself."""
