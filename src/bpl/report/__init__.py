"""Tables, figures and sentences made from records and configs; nothing here reads an image or runs a network."""

from bpl.report.claims import Claim, claim
from bpl.report.controls import control, find, of_method
from bpl.report.courses import at_the_bound, departures, landing, last_values, selection_changes
from bpl.report.display import Drawing, Markdown
from bpl.report.evidence_list import evidence, items
from bpl.report.figures import difference_to_dense, price, tradeoff
from bpl.report.intervals import contrasts, difference_chart, difference_table, together
from bpl.report.masked import best_epoch_gains, masked_table
from bpl.report.reading import collect, lacking, recorded
from bpl.report.recipe import averaging_table, recipe_table
from bpl.report.rows import ReportError, Row, group, select
from bpl.report.search import search_answer, search_table
from bpl.report.sentences import aim_met, answer, beside_claim, complete, diversity, ranking, reached
from bpl.report.statistics import Difference, Summary, bootstrap_interval, paired_difference, summarise
from bpl.report.tables import accuracy_table, cost_table
from bpl.report.training_curves import curves, residuals, strengths
from bpl.report.training_pace import epochs_to_reach, pace
from bpl.report.verdicts import Question, seeds_needed, verdict_of, verdict_table

__all__ = [
    "Claim",
    "Difference",
    "Drawing",
    "Markdown",
    "Question",
    "ReportError",
    "Row",
    "Summary",
    "accuracy_table",
    "aim_met",
    "answer",
    "at_the_bound",
    "averaging_table",
    "beside_claim",
    "best_epoch_gains",
    "bootstrap_interval",
    "claim",
    "collect",
    "complete",
    "departures",
    "landing",
    "last_values",
    "selection_changes",
    "contrasts",
    "control",
    "cost_table",
    "curves",
    "difference_chart",
    "difference_table",
    "difference_to_dense",
    "diversity",
    "epochs_to_reach",
    "evidence",
    "find",
    "group",
    "items",
    "lacking",
    "masked_table",
    "of_method",
    "pace",
    "paired_difference",
    "price",
    "ranking",
    "reached",
    "recipe_table",
    "recorded",
    "residuals",
    "search_answer",
    "search_table",
    "seeds_needed",
    "select",
    "strengths",
    "summarise",
    "together",
    "tradeoff",
    "verdict_of",
    "verdict_table",
]
