"""``python reproduce.py --help`` says what it does; see reproduction/program.py."""

from reproduction.program import main

if __name__ == "__main__":
    main()
