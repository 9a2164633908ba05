"""How tokens are decoded fast; to skip at a first reading: it computes what the policy computes."""
