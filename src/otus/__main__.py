"""Run the command ``otus`` by ``python -m otus``."""

from otus.cli import main

if __name__ == "__main__":
    main()
