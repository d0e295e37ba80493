"""What serves one model only: the weights in the root of this repository, their training data, their card and README."""
