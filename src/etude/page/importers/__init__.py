"""Reading papers from what people have at hand: a saved page, arXiv Atom, the HF daily papers, BibTeX."""

from etude.page.importers.reading import Reading as Reading
from etude.page.importers.reading import Unreadable as Unreadable
from etude.page.importers.reading import read as read
