"""The asv suite; apart from the rest of `benchmarks`, because asv imports all that lies here."""
