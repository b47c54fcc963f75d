"""`ray job submit --working-dir . -- python jobs/audit-splits.py --help`"""

from urbancross.cli import main

if __name__ == "__main__":
    main("audit-splits")
