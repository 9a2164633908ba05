"""Fast decoding of tokens. Skip this on a first reading: it computes the same as the policy."""
