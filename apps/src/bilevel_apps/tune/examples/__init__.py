"""Problems on real data that installs with scikit-learn, one per file."""
