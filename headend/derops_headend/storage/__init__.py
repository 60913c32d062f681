"""The PostgreSQL side of the history: schema, migrations, and storing what the log holds."""
