"""`python -m rig`."""

from rig.cli import program

if __name__ == "__main__":
    program()
