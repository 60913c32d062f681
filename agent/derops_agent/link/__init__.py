"""One connected stream for each asset."""
