"""What came out: tables, plots and pictures of where the network looks."""
