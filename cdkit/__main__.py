"""`python -m cdkit`: the command line, where the script `cdkit` is not on the path."""

from cdkit.evals.cli import main

if __name__ == "__main__":
    main(prog_name="python -m cdkit")
