"""HTTP: validates, tokenizes, submits to the queue, and streams the token log back. Knows no torch."""
