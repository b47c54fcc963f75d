"""`ray job submit --working-dir . -- python jobs/serve.py --help`"""

from urbancross.cli import main

if __name__ == "__main__":
    main("serve")
