"""From updates to verdicts: who agrees with whom, who stands out, and why."""
