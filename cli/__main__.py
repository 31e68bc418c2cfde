"""`python -m cli`, which ./muster calls."""

from cli.main import main

if __name__ == "__main__":
    main()
