"""Results of networks: predictions and features as files, tables, plots and pages."""
