"""`ray job submit --working-dir . -- python jobs/plan.py --help`"""

from urbancross.cli import main

if __name__ == "__main__":
    main("plan")
