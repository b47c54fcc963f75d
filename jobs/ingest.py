"""`ray job submit --working-dir . -- python jobs/ingest.py --help`"""

from urbancross.cli import main

if __name__ == "__main__":
    main("ingest")
