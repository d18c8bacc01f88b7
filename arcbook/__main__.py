"`python -m arcbook` and `accelerate launch -m arcbook` are the `arcbook` command."
from arcbook.cli import main

if __name__ == "__main__": main()
