"""A leaderboard as a static site, and the proof that it says what its samples say. Reads the store only."""

from harness.publish._destinations import publish_to
from harness.publish._site import Published, publish, verify

__all__ = ["Published", "publish", "publish_to", "verify"]
