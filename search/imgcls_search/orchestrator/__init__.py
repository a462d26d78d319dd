"""One search, from opening its study to its end."""
