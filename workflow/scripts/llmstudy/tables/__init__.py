"""From records to tidy tables: one observation a row, units in the column names."""
