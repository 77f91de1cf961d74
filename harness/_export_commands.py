"""`harness export`: a sweep copied into a tracker, or into Optuna's own storage."""

import argparse

from harness._command_basics import DONE, open_store
from harness._printable import printable
from harness._secrets import redacted

__all__ = ["command_export"]


def command_export(options: argparse.Namespace) -> int:
    """`harness export`: write what is not there yet."""
    from harness.show import find_sweep

    store = open_store(options.results)
    sweep = find_sweep(store, options.sweep)
    if options.kind == "optuna":
        from harness.trackers import export_studies, storage_url

        url = storage_url(options.to or str(options.results / "optuna.db"))
        for name, trials in export_studies(store, sweep, url).items():
            print(printable(f"{name}: {trials} trials"))
        print(printable(redacted(f"To look at them: optuna-dashboard {url}")))
        return DONE
    from harness.trackers import open_tracker, track

    with open_tracker(options.kind, options.to, store, sweep) as tracker:
        written = track(store, sweep, tracker)
        look = tracker.look
    print(printable(f"{sweep}: {written} runs written." if written else f"{sweep}: all of it was there already."))
    print(printable(redacted(f"To look at them: {look}")))
    return DONE
