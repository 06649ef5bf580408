"""A run in a ledger, for tests of what the page says of it."""

from etude.lab.study import Measurement


def measured(ledger, slug, arms, *, metric="exact", protocol="hull", tier="laptop", seconds=5.0, started=None):
    """A finished run: a value for each arm, the same for three seeds but for a hundredth. Returns its id."""
    run = ledger.begin(slug, tier, f"key of {arms}", {"config": {}, "versions": {}}, started=started)
    for arm, value in arms.items():
        rows = [Measurement(arm, seed, metric, value + 0.01 * (seed - 1001), unit="1") for seed in (1000, 1001, 1002)]
        ledger.commit(run, protocol, arm, [1000, 1001, 1002], rows, seconds=1.0, peak_bytes=1)
    ledger.update(run, state="done", seconds=seconds)
    return run
