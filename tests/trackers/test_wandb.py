"""What W&B keeps offline is read back from the run's own log, in the messages of its package."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.store import Store
from harness.trackers import open_tracker
from tests.store.scenario import SWEEP
from tests.trackers.contract import FACTS, Seen, TrackerContract

_BLOCK, _HEADER, _BEGIN = 32_768, 7, 7


def _records(file: Path) -> Iterator[Any]:
    """The messages of a `.wandb` file: after seven bytes a log of LevelDB's form, records split over blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, held = file.read_bytes(), _BEGIN, b""
    while at + _HEADER <= len(data):
        if (left := _BLOCK - at % _BLOCK) < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        held += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        whole, last = 1, 4
        if kind in (whole, last):
            yield Record.FromString(held)
            held = b""


class TestWandB(TrackerContract):
    """Offline, as it is by default here."""

    name = "wandb"

    # These stay where they are: `wandb sync` sends the run's log and the folder `files`.
    local = ("debug.log", "debug-internal.log", "debug-core.log")

    @pytest.fixture(autouse=True)
    def _alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
            monkeypatch.delenv(name, raising=False)

    def seen(self, place: Path, sweep: str) -> list[tuple[str, Seen]]:
        import json

        found = []
        for file in sorted(place.glob("wandb/offline-run-*/run-*.wandb")):
            seen, group, name, ended = Seen(), "", "", None
            for record in _records(file):
                kind = record.WhichOneof("record_type")
                if kind == "run":
                    group, name = record.run.run_group, record.run.display_name
                    assert record.run.project == "dpo_vs_ppo"
                    assert not record.run.host
                    config = {u.key: json.loads(u.value_json) for u in record.run.config.update if u.key != "_wandb"}
                    seen.facts = {k: v for k, v in config.items() if k in FACTS}
                    seen.settings = {k: v for k, v in config.items() if k not in FACTS}
                elif kind == "history":
                    row = {_name(item): _number(json.loads(item.value_json)) for item in record.history.item}
                    step = int(row["_step"])
                    for key, value in row.items():
                        if not key.startswith("_"):
                            seen.curves.setdefault(key, []).append((step, value))
                elif kind == "summary":
                    last = {_name(item): json.loads(item.value_json) for item in record.summary.update}
                    seen.figures |= {
                        k: v
                        for k, v in last.items()
                        if not k.startswith(("_", "train/")) and isinstance(v, int | float)
                    }
                elif kind == "exit":
                    ended = record.exit.exit_code
            if group == sweep:
                assert ended == (0 if seen.facts["state"] == "complete" else 1)
                found.append((name, seen))
        return found

    def test_a_mode_in_which_nothing_is_kept_is_refused(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        with pytest.raises(UserError, match="WANDB_MODE=disabled"), open_tracker("wandb", str(tmp_path), store, SWEEP):
            pass


def _name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _number(value: Any) -> float:
    return float(value) if not isinstance(value, str) else {"NaN": float("nan")}[value]
