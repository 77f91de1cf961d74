"""TensorBoard reads what is written, its table of hyperparameters included."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.store import Store
from harness.trackers import TrackedRun
from tests.store.scenario import SWEEP
from tests.trackers.contract import Seen, TrackerContract, everything

TRACK = f"""
import sys
from pathlib import Path
from harness.store import Store
from harness.trackers import open_tracker, track
store = Store(Path(sys.argv[1]))
with open_tracker("tensorboard", sys.argv[2], store, {SWEEP!r}) as tracker:
    print(track(store, {SWEEP!r}, tracker))
    print("torch" in sys.modules)
import tensorboardX
print(tensorboardX.SummaryWriter.__name__)
"""


class TestTensorBoard(TrackerContract):
    """By its own reader of event files."""

    name = "tensorboard"

    def settings(self, run: TrackedRun) -> dict[str, object]:
        # Only what differs between runs is of use in its table.
        return {k: "null" if v is None else v for k, v in run.settings.items()}

    def seen(self, place: Path, sweep: str) -> list[tuple[str, Seen]]:
        pytest.importorskip("tensorboard", reason="tensorboard, which reads what is written here, is not installed")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        found = []
        for file in sorted((place / sweep).rglob("*tfevents*")):
            reader = EventAccumulator(str(file.parent), size_guidance={"scalars": 0}).Reload()
            seen = Seen()
            for tag in reader.Tags()["scalars"]:
                points = [(event.step, event.value) for event in reader.Scalars(tag)]
                if tag.startswith("train/"):
                    seen.curves[tag] = points
                else:
                    assert [step for step, _ in points] == [0]
                    seen.figures[tag] = points[0][1]
            content = reader.summary_metadata["_hparams_/session_start_info"].plugin_data.content
            for name, value in HParamsPluginData.FromString(content).session_start_info.hparams.items():
                kind = value.WhichOneof("kind")
                plain = getattr(value, kind)
                if kind == "number_value" and plain.is_integer():
                    plain = int(plain)
                (seen.settings if "." in name else seen.facts)[name] = plain if "." in name else str(plain)
            found.append((file.parent.relative_to(place / sweep).as_posix(), seen))
        return found

    def test_no_run_has_two_files_and_none_is_left_aside(self, store: Store, tmp_path: Path) -> None:
        self._tracked(store, tmp_path / "place")
        files = [file for file in (tmp_path / "place").rglob("*") if file.is_file()]
        assert len(files) == len({file.parent for file in files}) == len(everything(store))
        assert {file.name[:20] for file in files} == {"events.out.tfevents."}

    def test_its_table_of_hyperparameters_has_every_run_and_how_it_ended(self, store: Store, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
        from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
        from tensorboard.context import RequestContext
        from tensorboard.plugins.base_plugin import TBContext
        from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest, Status
        from tensorboard.plugins.hparams.backend_context import Context
        from tensorboard.plugins.hparams.list_session_groups import Handler

        place = tmp_path / "place"
        self._tracked(store, place)
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(place))
        multiplexer.Reload()
        context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(place))))
        request = RequestContext()
        experiment = context.experiment_from_metadata(request, "", True, context.hparams_metadata(request, ""), None)
        assert {"recipe", "state", "dpo.beta", "ppo.kl_coef"} <= {one.name for one in experiment.hparam_infos}
        assert "objective/gold_reward" in {one.name.tag for one in experiment.metric_infos}
        asked = ListSessionGroupsRequest(start_index=0, slice_size=100, allowed_statuses=Status.values())
        groups = Handler(request, context, "", asked).run().session_groups
        assert len(groups) == len(everything(store))
        ended = {g.sessions[0].status for g in groups}
        assert ended == {Status.Value("STATUS_SUCCESS"), Status.Value("STATUS_FAILURE")}
        assert {g.hparams["state"].string_value for g in groups} == {"complete", "failed", "infeasible"}
        assert SWEEP in {g.sessions[0].name.split("/")[0] for g in groups}

    def test_it_is_written_without_torch_and_leaves_its_library_whole(self, store: Store, tmp_path: Path) -> None:
        command = [sys.executable, "-c", TRACK, str(store.results), str(tmp_path / "place")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.stdout.split() == [str(len(everything(store))), "False", "SummaryWriter"], done.stderr
