"""An embedding without labels: principal components of an upstream's layers, as a model like any other."""
