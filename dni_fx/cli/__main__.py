"""`python -m dni_fx.cli`."""

from dni_fx.cli import main

if __name__ == "__main__":
    main()
