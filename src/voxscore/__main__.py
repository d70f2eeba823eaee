"""`python -m voxscore` is the command line, as `torchrun -m voxscore` needs it."""

from voxscore.cli import main

if __name__ == "__main__":
    main()
