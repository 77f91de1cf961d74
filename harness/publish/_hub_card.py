"""The README.md that the Hugging Face Hub reads: what the repository is, for its pages, its viewer and its hosting."""

import json
from typing import Literal

__all__ = ["MARK", "card"]

MARK = "<!-- written by harness publish; a README.md without this line is left as it is -->"


def card(name: str, kind: Literal["dataset", "space"]) -> bytes:
    """A dataset's card, with its tables for the viewer, or a static Space's, with its page; the same for every board.

    Args:
        name: `ORG/NAME`.
        kind: of the repository.
    """
    title = json.dumps(name.rpartition("/")[2])
    tags = "tags:\n- leaderboard\n- evaluation\n- posttrain-harness"
    if kind == "space":
        facts = f"title: {title}\nsdk: static\napp_file: index.html\npinned: false\n{tags}"
        loading = ""
    else:
        # By name: the viewer would take both tables for one.
        tables = "".join(
            f"\n- config_name: {table}\n  data_files: data/{table}.parquet{default}"
            for table, default in (("entries", "\n  default: true"), ("samples", ""))
        )
        facts = f"pretty_name: {title}\n{tags}\nconfigs:{tables}"
        loading = f'    datasets.load_dataset("{name}", "entries")  # or "samples"\n'
    return f"""---
{facts}
---
{MARK}

# {name.rpartition("/")[2]}

A leaderboard of post-training recipes: `index.html` is the board, `entries/` has a page for each entry with its
provenance and the command that repeats it, `data/` the figures and the samples that they were computed from.

{loading}    hf download {name} --repo-type {kind} --local-dir board
    harness verify board

The last line computes every figure again from its samples and says what differs.
""".encode()
