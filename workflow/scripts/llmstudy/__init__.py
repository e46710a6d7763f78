"""The measuring library of the precision study: importable and testable without Snakemake."""
