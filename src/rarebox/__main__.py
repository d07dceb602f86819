"""``python -m rarebox``."""

from rarebox.cli.main import main

if __name__ == "__main__":
    main()
