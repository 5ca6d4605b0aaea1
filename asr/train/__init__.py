"""Training: one domain's adapter, the sequence of domains, and how a stopped run goes on."""
