"""Texts as vectors, codes and answers."""

from etude.layers.hamming import HammingIndex as HammingIndex
from etude.text.disambiguated_skipgram import DisambiguatedSkipGram as DisambiguatedSkipGram
from etude.text.disambiguated_skipgram import MultiSenseSkipGram as MultiSenseSkipGram
from etude.text.hashing import IterativeQuantization as IterativeQuantization
from etude.text.hashing import RandomHyperplanes as RandomHyperplanes
from etude.text.hashing import SignHash as SignHash
from etude.text.paragraph_vector import BinaryParagraphVector as BinaryParagraphVector
from etude.text.paragraph_vector import ParagraphVector as ParagraphVector
from etude.text.semantic_hashing import SemanticHashing as SemanticHashing
from etude.text.vocabulary import Vocabulary as Vocabulary
