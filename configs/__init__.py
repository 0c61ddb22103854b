"""Run files, as a package so that the wheel contains them."""
