"""`etude doctor`: what is installed, which extras, which data and devices."""

import importlib.metadata
import importlib.util
import os
from typing import Any

from etude.lab.environment import environment, versions

# Extra -> the modules that it brings; what they are for stands in the README.
EXTRAS: dict[str, tuple[str, ...]] = {
    "tables": ("pandas", "pyarrow"),
    "images": ("PIL",),
    "hf": ("transformers", "tokenizers"),
    "cluster": ("ray",),
    "postgres": ("psycopg",),
    "web": (
        "fastapi",
        "uvicorn",
        "itsdangerous",
        "multipart",
        "nh3",
        "markdown_it",
        "defusedxml",
        "email_validator",
        "pylatexenc",
        "bibtexparser",
        "tzdata",
        "httpx2",
    ),
    "bench": ("vector_quantize_pytorch", "gensim", "faiss"),
    "docs": ("sphinx", "myst_parser", "furo"),
    "test": ("pytest", "hypothesis", "ruff", "mypy", "importlinter", "sybil", "playwright"),
}


def examine() -> dict[str, Any]:
    """A plain record of this installation."""
    import torch

    from etude.data.sources import available

    cuda = torch.cuda.is_available()
    devices = ["cpu"] + [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count() if cuda else 0)
    ]
    missing = {extra: [m for m in modules if importlib.util.find_spec(m) is None] for extra, modules in EXTRAS.items()}
    return {
        "environment": environment("cuda" if cuda else "cpu", 1) | {"packages": versions()},
        "devices": devices,
        "extras": {extra: not gone for extra, gone in missing.items()},
        "missing": {extra: f"pip install 'etude[{extra}]'" for extra, gone in missing.items() if gone},
        "data": {"ETUDE_DATA": os.environ.get("ETUDE_DATA"), "sets": {s.name: s.state for s in available()}},
        "ledger": os.environ.get("ETUDE_LEDGER") or "etude.sqlite in the working folder",
    }
