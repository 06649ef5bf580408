"""LaTeX accents as letters; formulas stay as they are."""

import re

from etude.errors import MissingExtra

MATH = re.compile(r"((?<!\\)\$(?:\\.|[^$\\])*\$|\\\(.*?\\\))", re.DOTALL)
_LETTER = "aa|AA|ae|AE|oe|OE|o|O|l|L|ss|i|j"
_ACCENT = re.compile(
    r"""\\(?:["'`^~=.](?:\{\\?[A-Za-z]+\}|\\?[A-Za-z])|[cvuHkrdbt]\{\\?[A-Za-z]+\}|(?:"""
    + _LETTER
    + r""")\b(?:\{\}|\s?)|[&%#_$])"""
)
_BRACED = re.compile(r"""(?<!\\["'`^~=.cvuHkrdbt])\{\\(""" + _LETTER + r""")\s*\}""")  # no accent's own letter


def decode_accents(text: str) -> str:
    r"""``na\"{\i}ve`` -> naive with its diaeresis, ``\L ojasiewicz`` -> Lojasiewicz with its stroke.

    Raises
    ------
    MissingExtra
        Without the package `pylatexenc`, when there is something to decode.
    """
    if "\\" not in text:
        return text
    try:
        from pylatexenc.latex2text import LatexNodes2Text
    except ImportError as error:
        raise MissingExtra("pylatexenc", "web", "decoding LaTeX accents") from error
    decoder = LatexNodes2Text(math_mode="verbatim")

    def letter(match: re.Match[str]) -> str:
        piece = match.group(0)
        inner = piece[1:-1] if piece.startswith("{") and piece.endswith("}") else piece
        return decoder.latex_to_text(inner.strip()).strip()

    parts = MATH.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\{\\([cvuHkrdbt])\s+(\\?[A-Za-z])\}", r"\\\1{\2}", parts[i])  # {\H o}
        parts[i] = _BRACED.sub(r"\\\1{}", parts[i])  # S{\o}ren, which is no \oren
        parts[i] = _ACCENT.sub(letter, re.sub(r"\{(\\[A-Za-z\"'`^~=.]+(?:\s?\{?\\?[A-Za-z]*\}?)?)\}", r"\1", parts[i]))
    return "".join(parts)
