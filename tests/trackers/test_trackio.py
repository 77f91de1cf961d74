"""trackio's own storage reads what is written into its local database."""

import math
from pathlib import Path

import pytest

from tests.trackers.contract import FACTS, Seen, TrackerContract


class TestTrackio(TrackerContract):
    """By its API and its storage."""

    name = "trackio"

    @pytest.fixture(autouse=True)
    def _alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRACKIO_DIR", raising=False)
        # Where one is named for other work, nothing of this goes there.
        monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")

    def seen(self, place: Path, sweep: str) -> list[tuple[str, Seen]]:
        import trackio
        import trackio.sqlite_storage

        assert place == trackio.sqlite_storage.TRACKIO_DIR
        found = []
        for run in trackio.Api().runs(sweep):
            config = dict(run.config or {})
            seen = Seen(
                facts={k: v for k, v in config.items() if k in FACTS},
                settings={k: v for k, v in config.items() if k not in FACTS and not k.startswith(("_", "harness "))},
            )
            for row in trackio.sqlite_storage.SQLiteStorage.get_logs(sweep, run.name, run_id=run.id):
                step = row.pop("step")
                row.pop("timestamp")
                for name, value in row.items():
                    if name.startswith("train/"):
                        seen.curves.setdefault(name, []).append((step, math.nan if value is None else value))
                    else:
                        assert step == 0
                        seen.figures[name] = value
            found.append((run.name, seen))
        return found
