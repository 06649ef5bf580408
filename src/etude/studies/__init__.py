"""One study a paper, found by existing."""
