"""From tables to REPORT.md: numbers as text, Markdown tables, diagrams and the templates that hold them."""
