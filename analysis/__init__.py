"""What an embedding holds: in which layer, in which dimensions, at what cost (Porjazovski et al., IEEE/ACM TASLP 2024)."""
