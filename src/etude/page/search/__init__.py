"""Search: words and meaning together, with the reasons for every hit."""
