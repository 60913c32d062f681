"""From what the log holds to rows of the database. Pure: no database, no file, no clock."""
