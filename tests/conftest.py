"""Settings for the whole suite: no network beyond the package index is assumed, skips are failures in CI."""

import os
import shutil
import threading

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "etude", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("etude")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With ETUDE_NO_SKIPS a skip is a failure, unless its reason starts with "optional:"."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("ETUDE_NO_SKIPS") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        # scikit-learn skips its own array-API check unless SciPy's experimental switch is set
        if "optional:" not in reason and "check_array_api_input" not in item.nodeid:
            report.outcome = "failed"
            report.longrepr = f"skipped in CI: {reason}"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; one a file, as two of Playwright's loops do not go together in one process."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    api = pytest.importorskip("playwright.sync_api", reason="the extra test is not installed")
    with api.sync_playwright() as p:
        made = p.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield made
        made.close()


def pytest_runtest_teardown():
    """Wait for a page's encoder: transformers ties no weights in the whole process while a model loads in a thread."""
    for thread in threading.enumerate():
        if thread.name == "etude-meaning":
            thread.join(timeout=120)
