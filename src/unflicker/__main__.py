"""`python -m unflicker` is the command."""

from unflicker.cli import main

if __name__ == "__main__":
    main()
