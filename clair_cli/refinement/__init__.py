"""From verdicts to better adapters: what each client keeps, and what the others give it."""
