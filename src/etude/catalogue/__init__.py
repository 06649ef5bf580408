"""Papers and claims: typed cards, one TOML file a paper."""

from etude.catalogue.card import Arms as Arms
from etude.catalogue.card import ChecklistItem as ChecklistItem
from etude.catalogue.card import Claim as Claim
from etude.catalogue.card import Control as Control
from etude.catalogue.card import Metric as Metric
from etude.catalogue.card import Paper as Paper
from etude.catalogue.card import PaperFigure as PaperFigure
from etude.catalogue.load import CatalogueError as CatalogueError
from etude.catalogue.load import json_schema as json_schema
from etude.catalogue.load import load as load
from etude.catalogue.load import papers as papers
from etude.catalogue.load import parse_card as parse_card
from etude.catalogue.search import search as search
