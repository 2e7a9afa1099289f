"""cdkit in harnesses of others: installed there, in an environment of its own."""
