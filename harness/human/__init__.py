"""People rate answers: forms are made from the store's answers, and what is sent back goes into the store."""

from harness.human._create import FORMATS, Created, create_forms
from harness.human._criteria import CRITERIA, parse_criteria
from harness.human._figures import HumanFigures, Preferred, Rated, RaterShown, ratings_of
from harness.human._forms import Design
from harness.human._import import Taken, import_ratings
from harness.human._judges import JudgeBeside, judges_beside
from harness.human._means import MARKS, SHARE, cells_of, mean_of, preference_of, set_against
from harness.human._ratings import People, read_people

__all__ = [
    "CRITERIA",
    "FORMATS",
    "MARKS",
    "SHARE",
    "Created",
    "Design",
    "HumanFigures",
    "JudgeBeside",
    "People",
    "Preferred",
    "Rated",
    "RaterShown",
    "Taken",
    "cells_of",
    "create_forms",
    "import_ratings",
    "judges_beside",
    "mean_of",
    "parse_criteria",
    "preference_of",
    "ratings_of",
    "read_people",
    "set_against",
]
