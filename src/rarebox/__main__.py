"""``python -m rarebox``."""

from rarebox.cli import main

if __name__ == "__main__":
    main()
