"""What the gateways are to hold, and what they say."""
