"""`python -m dni_fx`: the command line."""

from dni_fx.cli import main

if __name__ == "__main__":
    main()
