"""Data modules with a labelled source domain and an unlabelled target domain."""
