"""Problems on real data that installs with scikit-learn, one a file."""
