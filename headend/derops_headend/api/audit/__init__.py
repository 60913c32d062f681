"""The audit: a record of every call, in a file first, then in the database."""
