"""Who may open a stream: certificates, and the ledger of identities."""
