"""What may be in files that come from elsewhere: `targets` says what is fuzzed, `mutations` how it is damaged."""
