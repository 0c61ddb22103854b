"""How a network is trained and tested; knows neither models nor data sets nor settings."""
