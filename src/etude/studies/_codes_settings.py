"""Settings of the arms that learn codes: the best MAP on training documents of pilot seeds, grids of like size."""

from typing import Any

COMMON: dict[str, dict[str, Any]] = {
    "binary128": {"n_bits": 128, "lr": 0.002, "max_epochs": 8},
    "binary32": {"n_bits": 32, "lr": 0.002, "max_epochs": 20},
    "bigrams128": {"n_bits": 128, "lr": 0.002, "max_epochs": 8, "ngram_range": (1, 2)},
    "real_binary28": {"n_bits": 28, "architecture": "real-binary", "lr": 0.002, "max_epochs": 30},
    "real": {"lr": 0.002, "document_lr": 0.003, "max_epochs": 25}, "autoencoder128": {"lr": 0.003, "max_epochs": 15},
}  # fmt: skip
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "wikilead": {
        "binary128": {"lr": 0.001}, "binary32": {"lr": 0.001, "max_epochs": 12}, "bigrams128": {"lr": 0.001},
        "real": {"lr": 0.001}, "autoencoder128": {"lr": 0.001, "max_epochs": 8},
    },
    "topics": {
        "binary128": {"lr": 0.005}, "binary32": {"lr": 0.005, "max_epochs": 12}, "bigrams128": {"lr": 0.005},
        "real": {"lr": 0.005, "max_epochs": 10}, "autoencoder128": {"lr": 0.003, "max_epochs": 8},
        "real_binary28": {"lr": 0.005, "max_epochs": 15},
    },
}  # fmt: skip


def settings_of(protocol: str, arm: str) -> dict[str, Any]:
    """Options of an arm's model on a collection."""
    return COMMON[arm] | TUNED.get(protocol, {}).get(arm, {})
