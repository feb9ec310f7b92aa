"""Runs killed at random moments end as the run that was left alone does (tests/support/kill_runs.py)."""

import pytest
from tool_process import run_tool


@pytest.mark.proof
def test_killed_and_resumed_runs_are_bit_equal():
    result = run_tool("kill_runs", "--runs", "20", "--seed", "1")
    assert result["bit_equal"] == result["runs"] == 20
    assert result["kills"] >= 20
    assert result["kills_in_a_save"] >= 5
