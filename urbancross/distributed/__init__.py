"""The only folder that imports Ray, which reads this of its environment when it is imported."""

import os

# A worker's death is told by the watch, with the shard and the tiles; Ray tells it in a paragraph of its own.
RAYS_OWN_WORDS = "A worker died or was killed while executing|infinite retries remaining|is temporarily unavailable"
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", RAYS_OWN_WORDS)
