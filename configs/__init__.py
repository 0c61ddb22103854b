"""Run files; a package so that they travel inside the wheel."""
