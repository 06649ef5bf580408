"""The study contract, runner, ledger, judge and report."""
