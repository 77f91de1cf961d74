"""People rate answers: forms are made from the store's answers, and what is sent back goes into the store."""

from harness.human._create import FORMATS, Created, create_forms
from harness.human._criteria import CRITERIA, parse_criteria
from harness.human._figures import HumanFigures, Preferred, Rated, RaterShown, ratings_of
from harness.human._forms import Design
from harness.human._import import Taken, import_ratings
from harness.human._judges import JudgeBeside, judges_beside

__all__ = [
    "CRITERIA",
    "FORMATS",
    "Created",
    "Design",
    "HumanFigures",
    "JudgeBeside",
    "Preferred",
    "Rated",
    "RaterShown",
    "Taken",
    "create_forms",
    "import_ratings",
    "judges_beside",
    "parse_criteria",
    "ratings_of",
]
