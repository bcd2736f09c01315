"""``python -m otus`` is the command ``otus``."""

from otus.cli import main

if __name__ == "__main__":
    main()
