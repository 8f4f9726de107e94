"""The evaluation wing: metrics, verdicts, reports."""
