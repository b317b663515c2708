"""With PARITY=required, which CI sets, a comparison that is skipped counts as one that failed."""

import os

import pytest


def _fail_skipped(report: pytest.CollectReport | pytest.TestReport) -> None:
    if os.environ.get("PARITY") == "required" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, though PARITY=required: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if "parity" in collector.nodeid:
        _fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _fail_skipped(report)
    return report
