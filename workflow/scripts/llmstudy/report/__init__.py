"""From tables to REPORT.md: a module for each subject has its tables, sentences and figures, which templates hold."""
