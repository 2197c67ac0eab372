"""`python -m cwd`: the same as the console script `cwd`."""

from cwd.cli.main import main

if __name__ == "__main__":
    main()
